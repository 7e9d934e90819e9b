"""One operator, honestly: a trusted parent times and judges implementations that run in processes of their own."""
