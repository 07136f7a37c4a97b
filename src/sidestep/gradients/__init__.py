"""Ways to estimate a gradient: directions, activities, rank-one noise, local losses, tangents, end to end."""

__all__: list[str] = []
