"""Faces drawn by a program, in Adience's format."""

from satm_tf.data.synthetic.faces import render, write_adience

__all__ = ["render", "write_adience"]
