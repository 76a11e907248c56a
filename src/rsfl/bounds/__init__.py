"""Numbers in, numbers out: confidence bounds, certified radii and poisoning bounds, in float64 and without torch."""
