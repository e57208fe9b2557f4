"""The xarray integration: empty in 0.1.0, where `Dataset.to_zarr(session.store)` does it."""
