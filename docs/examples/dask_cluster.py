"""Dask arrays into a repository, by processes of a cluster."""


def main() -> None:
    # --8<-- [start:cluster]
    import dask.array as da
    import xarray as xr
    from distributed import Client, LocalCluster

    from icechunk_xarray import to_icechunk

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster):
            lazy = da.random.random((400, 100), chunks=(50, 100))
            data = xr.Dataset({"noise": (("row", "column"), lazy)})
            to_icechunk(data, "noise", message="Noise", progress=True)
    # --8<-- [end:cluster]
    stored = xr.open_dataset("noise", engine="icechunk")
    assert stored.sizes == {"row": 400, "column": 100}
    assert 0.4 < float(stored.noise.mean()) < 0.6


if __name__ == "__main__":
    main()
