"""Pure judgement: records in, verdicts and rankings out. No model, clock, database or queue."""
