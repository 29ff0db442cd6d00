"""Token selectors, one a file: each says what it keeps, which settings it has, and which schedule suits it."""
