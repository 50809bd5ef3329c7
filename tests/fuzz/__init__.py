"""Random calls of every public loss, compared with its formula written out in float64."""
