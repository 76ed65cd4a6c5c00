"""The page: one file a tab, drawn with Gradio over the functions of `engine.api`."""
