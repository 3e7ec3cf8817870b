"""The engine: one folder for each floor, imports go down only. Everything public is at the top of the package."""
