"""Lips, gaze and blink, head pose and expression as codes of their own: the system of Wang et al. 2023 (PD-FGC).

"Progressive Disentangled Representation Learning for Fine-Grained Controllable Talking Head Synthesis", CVPR 2023
(arXiv 2211.14506). `python -m training.factors` trains it, stage by stage.
"""
