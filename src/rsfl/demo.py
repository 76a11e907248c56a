"""``python -m rsfl.demo``: the library's main job in small, on data that scikit-learn bundles."""

import numpy as np

from rsfl import bounds

__all__ = ["main"]


def bounds_table() -> str:
    """Radii that the same votes certify under the bounds of the field, in units of the noise."""
    n, alpha = 1000, 0.001
    names = ("Lecuyer", "Li", "Cohen", "two bounds", "CRFL", "exact")
    rows = [f"{'votes':>13}" + "".join(f"{name:>12}" for name in names)]
    for first, second in ((1000, 0), (990, 10), (900, 50), (600, 100), (480, 200)):
        p_a = bounds.clopper_pearson_lower(first, n, alpha)
        both = bounds.clopper_pearson_lower(first, n, alpha / 2)
        p_b = min(bounds.clopper_pearson_upper(second, n, alpha / 2), 1 - both)
        published = bounds.kl_budget(
            bounds.hoeffding_lower(first / n, n, alpha), bounds.hoeffding_upper(second / n, n, alpha)
        )
        radii = [
            bounds.lecuyer_radius(p_a, sigma=1.0),
            bounds.li_radius(p_a, sigma=1.0),
            bounds.cohen_radius(p_a, sigma=1.0),
            bounds.cohen_radius(both, p_b, sigma=1.0),
            np.sqrt(2 * published),  # the distance of two Gaussians at that divergence, in units of sigma
            bounds.cohen_radius(first / n, second / n, sigma=1.0),
        ]
        rows.append(f"{first:>6} : {second:<4}" + "".join(f"{np.floor(r * 1e3) / 1e3:>12.3f}" for r in radii))
    return "\n".join(rows)


def main() -> None:
    """Print what the bounds certify."""
    print("Radius in units of sigma from 1000 votes, at alpha = 0.001 (floored).")
    print("CRFL: the published divergence bound as a distance. exact: were the observed shares the probabilities.\n")
    print(bounds_table())


if __name__ == "__main__":
    main()
