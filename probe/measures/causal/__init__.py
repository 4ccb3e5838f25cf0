"""What carries the answer: edits of single heads, sites and positions over benchmark samples, with
intervals.

head_sweep            every head of every layer, ablated
head_cases            the cases of a head sweep on one image: shared, or each alone
patch_sweep           every layer and group of positions, patched
attribution_patching  the same, estimated from gradients
steering_curve        the effect of a direction over its scale
patch_cases           the cases of a patch sweep on one pair: shared, or each alone
patch_pairs           clean and corrupted prompts
position_groups       positions that are patched together
recorded_rows         one pass of the untouched model, which cases begin with
resumed_layers        the LLM from one layer on, for many cases at once
"""
