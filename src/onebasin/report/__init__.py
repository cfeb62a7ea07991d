"""Tables, figures and records of runs. The only place that imports a plotting library."""
