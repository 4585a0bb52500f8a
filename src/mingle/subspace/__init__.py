"""Linear algebra of the method: tensors in, tensors out."""

from mingle.subspace.low_rank import (
    WIDE,
    Factors,
    effective_rank,
    numerical_rank,
    polar,
    svd_of_factors,
    truncated_svd,
)
from mingle.subspace.null_space import Basis, NullSpaceProjector, SecondMoment, extend_basis
from mingle.subspace.projection import PROJECTIONS, Projection, project_delta

__all__ = [
    "PROJECTIONS",
    "WIDE",
    "Basis",
    "Factors",
    "NullSpaceProjector",
    "Projection",
    "SecondMoment",
    "effective_rank",
    "extend_basis",
    "numerical_rank",
    "polar",
    "project_delta",
    "svd_of_factors",
    "truncated_svd",
]
