"""What the steps that select documents are made of: features of words, budgets, language models, classifiers."""
