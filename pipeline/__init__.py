"""The stages of the pipeline; each is ``python -m pipeline <stage>`` and one public ``run()``."""
