"""What callers touch: the managers, the decorators, batches and warming."""
