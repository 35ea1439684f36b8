"""The human body: models, skinning, fitting, and what is built on the body (head, clothes)."""
