"""From answers to scores: exact match, VQA accuracy, POPE and multiple choice. Text in, numbers out; no model."""
