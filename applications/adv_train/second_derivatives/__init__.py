"""Faster second derivatives of convolutions and of BatchNorm in train mode."""

from adv_train.second_derivatives.mode import fast_second_derivatives

__all__ = ["fast_second_derivatives"]
