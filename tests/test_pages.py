"""Every code block on every page runs, or says why not; commands on pages exist."""

import ast
import importlib.util
import re
import shlex

import pytest
import torch
import torch.distributed as dist
from pages import DOCS, PAGES, ROOT, blocks, name_of

# Pages of which another file runs the blocks.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "CONTRIBUTING.md": "test_docs.py",
    "docs/detectron2.md": "test_docs.py",
    "docs/quickstart.md": "test_notebooks.py",
    "docs/gpu.md": "test_notebooks.py",
}
# Pages of a stack, whose blocks run where it is installed: `make test-torchvision` and the like.
STACKS = {
    "docs/torchvision.md": "torchvision",
    "docs/transformers.md": "transformers",
    "docs/lightning.md": "lightning",
    "docs/ultralytics.md": "ultralytics",
    "docs/mmdetection.md": "mmdet",
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page):
    name = name_of(page)
    if name in ELSEWHERE:
        assert page.stem in (ROOT / "tests" / ELSEWHERE[name]).read_text()
    for block in blocks(page):
        assert block.language in ("", "python", "sh", "text"), f"{name}:{block.line} has a language that nothing runs"
        if block.is_command and name not in STACKS:
            assert block.language == "sh", f"{name}:{block.line} is a block of commands: label it sh"
            assert block.reason, f"{name}:{block.line} does not say why it is not run"
        if block.language == "python" and not block.reason:
            ast.parse(block.code)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """Names that blocks of docs/distributed.md take for given, in a group of one process."""
    monkeypatch.chdir(tmp_path)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    labels = torch.randint(-1, 4, (2, 50))
    num_positives = int(((labels >= 0) & (labels < 3)).sum())
    corners = torch.rand(num_positives, 2)
    yield {
        "logits": torch.randn(2, 50, 3, requires_grad=True),
        "labels": labels,
        "num_classes": 3,
        "iou": torch.rand(num_positives),
        "pred": torch.randn(num_positives, 4, requires_grad=True),
        "target": torch.randn(num_positives, 4),
        "pred_boxes": torch.cat([corners, corners + 0.5], -1).requires_grad_(),
        "target_boxes": torch.cat([corners, corners + 0.4], -1),
    }
    dist.destroy_process_group()


RUN_HERE = [page for page in PAGES if name_of(page) not in ELSEWHERE]
RUN_HERE = [page for page in RUN_HERE if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_blocks_run(page, request):
    """In turn, as one program."""
    stack = STACKS.get(name_of(page))
    if stack is not None and importlib.util.find_spec(stack) is None:
        pytest.skip(f"needs {stack}")
    names = request.getfixturevalue("ready") if page.stem == "distributed" else {}
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            exec(compile(f"{chr(10) * block.line}{block.code}", str(page), "exec"), names)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.is_command:
                code = block.code.replace("\\\n", "")
                lines = [re.sub(r"\s+#.*", "", line).strip() for line in code.splitlines()]
                found += [(name_of(page), line) for line in lines if line]
    return found


@pytest.mark.parametrize(("page", "command"), commands(), ids=str)
def test_commands_exist(page, command):
    for part in re.split(r"&&|\|\|", command):
        program, *words = [word for word in shlex.split(part) if "=" not in word or word.startswith("-")]
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(words) <= set(targets)
        elif program == "pip":
            extras = {name for word in words for names in re.findall(r"\[(.+)\]", word) for name in names.split(",")}
            project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
            assert all(f"\n{extra} = [" in project for extra in extras)
        elif program in ("python", "pytest"):
            check_program(words)


def check_program(words: list[str]) -> None:
    """Its module or file is there, and every option stands in the sources beside it."""
    if words[0] == "-m":
        module = words[1].split(".")
        if not (ROOT / module[0]).exists():  # of the standard library, or installed
            return
        path = ROOT.joinpath(*module)
        path = path if path.is_dir() else path.with_suffix(".py")
    else:
        path = ROOT / words[0]
    assert path.exists()
    folder = path if path.is_dir() else path.parent
    if path.is_relative_to(DOCS) or path.is_relative_to(ROOT / "tests"):
        return
    sources = "".join(file.read_text() for file in folder.rglob("*.py"))
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert f'"{option}"' in sources, option
