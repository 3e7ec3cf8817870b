"""The whole: many processes, under load and under fire."""
