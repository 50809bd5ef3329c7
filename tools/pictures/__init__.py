"""The pictures of the pages about losses, drawn from the losses themselves."""
