"""The plan: ladder, sweep, records, fitted laws, plan, score, compare, figures."""
