"""Pictures: known sets, folders, files, archives, `.npz`, and pages of them."""

__all__: list[str] = []
