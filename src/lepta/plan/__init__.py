"""What a recipe costs, before anything is downloaded or bought; formulas and sources are in docs/plan.md."""
