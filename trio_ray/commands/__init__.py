"""The commands of `trio-ray`: each module has `add_arguments` and `run`."""
