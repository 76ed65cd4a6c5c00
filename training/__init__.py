"""Making a bundle: data, features, fitting, evaluation. Nothing here runs in the serving app."""
