"""The points that the paper leaves open, or on which it contradicts itself, and how each is settled here."""

from __future__ import annotations

from collections.abc import Mapping

SETTLED: Mapping[str, str] = {
    "reading": "R+Step-LL is named after the least likely class, but Eq. 3 and Algorithm 1 print y_true. Both are "
    "shown, in training and in the attack: `least_likely` descends toward the least likely class, `true` ascends from "
    "the true one, as printed.",
    "epsilon": "Images are in [0, 1]; 16/256 is 0.0625.",
    "clipping": "Every adversarial image is clipped to [0, 1] and to the ball of epsilon; the paper is silent.",
    "alpha": "alpha is epsilon / 2, and the random step alpha * sign(N(0, I)).",
    "crafting": "Examples are crafted in inference mode.",
    "one_off": "One-off accuracy as in Eq. 4: the true group or a neighbouring one.",
    "folds": "Adience's own folds: one to test on, four to learn from, of which a tenth of the subjects is for "
    "validation.",
    "clean_share": "A step uses a clean batch and an adversarial one of the same size, r_adv = 1.",
    "batch_norm": "Clean and adversarial images share batch statistics, in one pass.",
    "optimizer": 'At full size "e^-5" is 1e-5, SGD with momentum 0.9, batches of 8, 10,000 iterations. The small '
    "scale has its own, in its configuration.",
    "adaptation": "Domain adaptation, where the paper is silent: weight 0.1, Ganin's schedule, hidden width 256, on "
    "the features before the classification layer. `satm_without_adaptation` goes without, as do ensemble and pgd.",
    "stopping": "Early stopping, if any, on the validation images' sum of losses; never on the test fold.",
    "before": '"before" is the network as it was fine-tuned, from which every scheme starts.',
    "controls": "Rows without a printed figure are ours: `clean` trains on as long on clean images alone, `pgd` on "
    "clean images and each network's own PGD examples (from the true class, in both readings), on the faces of the "
    "small scale for 8 epochs where the others take 3, without which the networks end near chance.",
    "leaking": "Where adversarial images are classified better than clean ones, the pair may have encoded the label "
    "in the perturbations; such cells are listed below the table.",
    "holdout_epsilon": "The paper takes 16/256, but 32/256 for InceptionResNetV2; both epsilons are measured for both.",
    "ensemble": "As in the paper's comparison: each network learns from the fine-tuned other one, frozen, and not from "
    "itself.",
    "digits": "The paper names structures A and B and an average over black-box attacks, no epsilon. Taken: A trained "
    "with B; C and D as unseen models; Tramèr et al.'s 0.3 at full size, 0.1 at the small scale.",
    "curves": "The paper's captions name clean and adversarial rates of VGG16-Face; drawn with and without domain "
    "adaptation. The adversarial images are the partner's, as it was at that epoch.",
}
