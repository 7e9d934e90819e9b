"""The candidates are data: some crash, some do not import. Only the matrix runs them, in processes of its own."""

collect_ignore_glob = ["bad/*", "bad_cuda/*", "bad_engine/*", "clean/*", "clean_cuda/*", "remarked/*"]
