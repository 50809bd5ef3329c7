"""The losses as modules: they store hyper-parameters and call the functions."""

from .boxes import BoxIoULoss as BoxIoULoss
from .boxes import CompleteBoxIoULoss as CompleteBoxIoULoss
from .boxes import DistanceBoxIoULoss as DistanceBoxIoULoss
from .boxes import GeneralizedBoxIoULoss as GeneralizedBoxIoULoss
