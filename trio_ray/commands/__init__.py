"""The commands of `trio-ray`: one file a command, with `add_arguments` and `run`; one package a group of commands."""
