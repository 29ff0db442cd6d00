"""The parts of `jobs/train_tiny.py`: how the bundled model is built, fed, trained, kept and measured."""
