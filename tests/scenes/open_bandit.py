"""Makes ``open_bandit.npz``: what Open Bandit Pipeline says of the small Open Bandit logs that come with it.

The pages of an online shop: random items in three positions, and whether each was clicked (Saito and others 2020). What
is judged is the other policy of the same experiment, Bernoulli Thompson sampling. For slates the k-th impressions of
the three positions make one page. Run it in an environment of its own::

    pip install torch pandas scikit-learn seaborn pyyaml tqdm "numpy<2"
    pip install --no-deps --ignore-requires-python obp==0.5.5 pyieoe pingouin
    python tests/scenes/open_bandit.py
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
SHRINK = 3.0


def make() -> None:
    # Not import statements: the project does not depend on it.
    ope = import_module("obp.ope")
    dataset, policies = import_module("obp.dataset"), import_module("obp.policy")

    data = dataset.OpenBanditDataset(behavior_policy="random", campaign="men")
    log = data.obtain_batch_bandit_feedback()
    n, actions, places = log["n_rounds"], data.n_actions, data.len_list
    action, position, reward, pscore = (log[name] for name in ("action", "position", "reward", "pscore"))
    judged = policies.BernoulliTS(actions, places, is_zozotown_prior=True, campaign="men", random_state=0)
    policy = judged.compute_batch_action_dist(n_sim=5000, n_rounds=1)[0]  # (actions, places)
    clicks, shown = np.full((actions, places), 0.5), np.full((actions, places), 100.0)
    np.add.at(clicks, (action, position), reward)
    np.add.at(shown, (action, position), 1)
    q = clicks / shown

    dist, estimates = np.broadcast_to(policy, (n, actions, places)), np.broadcast_to(q, (n, actions, places))
    given = {"reward": reward, "action": action, "pscore": pscore, "position": position, "action_dist": dist}
    values = {
        "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**given),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given),
        "dm": ope.DirectMethod().estimate_policy_value(
            action_dist=dist, estimated_rewards_by_reg_model=estimates, position=position
        ),
        "dr": ope.DoublyRobust().estimate_policy_value(**given, estimated_rewards_by_reg_model=estimates),
        "dros": ope.DoublyRobustWithShrinkage(lambda_=SHRINK).estimate_policy_value(
            **given, estimated_rewards_by_reg_model=estimates
        ),
    }

    of = [np.flatnonzero(position == k) for k in range(places)]
    pages = min(map(len, of))
    rows = np.stack([one[:pages] for one in of], axis=1)  # (pages, places)
    at = np.arange(places)
    logged, own = pscore[rows], policy[action[rows], at]
    slates = {"slate_id": np.repeat(np.arange(pages), places), "reward": reward[rows].ravel()}
    slates["position"] = np.tile(at, pages)
    above, own_above = np.cumprod(logged, axis=1).ravel(), np.cumprod(own, axis=1).ravel()
    whole, own_whole = (np.repeat(x.prod(1), places) for x in (logged, own))
    values["slate_ips"] = ope.SlateStandardIPS(len_list=places).estimate_policy_value(
        **slates, pscore=whole, evaluation_policy_pscore=own_whole
    )
    values["iips"] = ope.SlateIndependentIPS(len_list=places).estimate_policy_value(
        **slates, pscore_item_position=logged.ravel(), evaluation_policy_pscore_item_position=own.ravel()
    )
    values["rips"] = ope.SlateRewardInteractionIPS(len_list=places).estimate_policy_value(
        **slates, pscore_cascade=above, evaluation_policy_pscore_cascade=own_above
    )
    values["cascade_dr"] = ope.SlateCascadeDoublyRobust(len_list=places, n_unique_action=actions).estimate_policy_value(
        **slates,
        action=action[rows].ravel(),
        pscore_cascade=above,
        evaluation_policy_pscore_cascade=own_above,
        q_hat=np.tile(q.T.ravel(), pages),
        evaluation_policy_action_dist=np.tile(policy.T.ravel(), pages),
    )
    small = {name: x.astype(np.uint8) for name, x in (("action", action), ("position", position), ("reward", reward))}
    np.savez_compressed(FILE, **small, pscore=pscore[:1], policy=policy, q=q, **values)
    assert (pscore == pscore[0]).all()
    print(pages, {name: float(value) for name, value in values.items()}, FILE.stat().st_size)


if __name__ == "__main__":
    make()
