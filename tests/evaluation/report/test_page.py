"""The page, read as people read it: in a browser, at a phone's and a desk's width."""

import base64
import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from satm_tf.attacks.gallery import write_gallery
from satm_tf.evaluation import Predictions, compare_ladder
from satm_tf.evaluation.masking.verdicts import DETECTED, NOT_APPLICABLE, NOT_DETECTED
from satm_tf.evaluation.report import write_report
from satm_tf.evaluation.report.answer import answer
from satm_tf.storage import LAYOUT
from tests.evaluation.browser import find_browser

NETWORKS = ["undefended/compact_vgg", "undefended/compact_resnet", "satm/compact_vgg", "satm/compact_resnet"]
HOLDOUT = "holdout/compact_inception"
EVIL = '<script>console.error("injected")</script> & $x_1$'


def _predictions():
    """Two attacks, one at two epsilons, between five networks, on 200 images of three classes."""
    generator = np.random.default_rng(0)
    networks = [*NETWORKS, HOLDOUT]
    cells = [("clean", 0.0, "", target) for target in networks]
    for attack, epsilon in (("fgsm", 0.0625), ("fgsm", 0.125), ("pgd", 0.125)):
        cells += [(attack, epsilon, source, target) for source in networks for target in networks]
    labels = np.arange(200, dtype=np.int32) % 3
    rates = np.where([cell[0] == "clean" for cell in cells], 0.8, generator.uniform(0, 0.75, len(cells)))
    right = generator.uniform(size=(len(cells), 200)) < rates[:, None]
    predicted = np.where(right, labels, (labels + 1) % 3).astype(np.uint8)
    return Predictions(pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target"]), predicted, labels, 3)


def _checks():
    verdicts = [NOT_DETECTED, DETECTED, NOT_APPLICABLE]
    rows = [
        (
            check,
            network,
            verdicts[(i + j) % 3],
            f"One sentence about {network}, with 12.3% in it.",
            '{"auto_attack": 0.314}' if check == "AutoAttack" else '{"p": 0.001}',
        )
        for i, check in enumerate(["gradient", "black box against white box", "AutoAttack"])
        for j, network in enumerate(NETWORKS)
    ]
    return pd.DataFrame(rows, columns=["check", "network", "verdict", "explanation", "figures"])


def _metrics():
    """Two stages as `CoTraining` logs them; the first has no adversarial rates."""
    epochs = np.arange(4)
    fine = pd.DataFrame({"epoch": epochs, "loss": 2.0 - 0.3 * epochs, "val_loss": 2.1 - 0.2 * epochs})
    fine["val_vgg_accuracy"] = 0.4 + 0.1 * epochs
    co = fine.rename(columns={"val_vgg_accuracy": "val_compact_vgg_accuracy"})
    co["compact_vgg_accuracy"] = 0.9
    co["val_compact_vgg_adversarial_accuracy"] = 0.2 + 0.1 * epochs
    co["compact_vgg_domain_loss"] = 0.7
    return pd.concat([fine.assign(stage="fine_tune/vgg"), co.assign(stage="co_train/satm")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all that a report is made of, some of it meant to break out of the page."""
    folder = tmp_path_factory.mktemp("run")
    predictions = _predictions()
    predictions.save(folder / "predictions.npz")
    predictions.frame().to_csv(folder / "results.csv", index=False)
    _checks().to_csv(folder / "checks.csv", index=False)
    _metrics().to_csv(folder / "metrics.csv", index=False)
    places = np.linspace(-0.1, 0.1, 5)
    surface = pd.DataFrame([(x, y, 1 + 3 * x) for x in places for y in places])
    surface = surface.set_axis(["along_gradient", "along_random", "loss"], axis=1).assign(network=NETWORKS[0])
    surface.to_csv(folder / "surfaces.csv", index=False)
    (folder / "class_names.json").write_text(json.dumps(["0-2", EVIL, "60-100"]))
    configuration = {"name": EVIL, "networks": {"x": "y" * 300}}
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    (folder / "data.txt").write_text("600 rows, 590 used\n  left out, no label: 10")
    environment = {"layout": LAYOUT, "python": "3.11", "devices": ["CPU a", "CPU b"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "gallery").mkdir()
    images = np.random.default_rng(1).uniform(size=[2, 8, 8, 3])
    write_gallery(folder / "gallery" / "pgd.png", images, 1 - images, ["a", "b"], ["b", "b"], title="PGD")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


def test_the_answer_leads_and_all_else_is_folded(page, folder):
    sentences = answer(Predictions.load(folder / "predictions.npz"))
    shown = re.findall("<p>(.*?)</p>", page.split('class="answer"')[1].split("</div>")[0])
    assert [html.unescape(sentence) for sentence in shown] == sentences
    first = page.index("<details>")
    assert page.index(sentences[0][:20]) < page.index("Bars of accuracy") < page.index("Each row shows a clean") < first
    assert page[:first].count("<table>") == 1
    assert page[:first].count("<img") == 2, "the ladder and adversarial images"
    assert re.findall("<h2>(.*?)</h2>", page[first:]) == [
        "Is it masking?",
        "Schemes compared on the same images",
        "Clean against robust",
        "Accuracy",
        "Transfer matrix",
        "The loss around images",
        "Confusion matrices",
        "Training",
        "Every check, with its figures",
        "How it was made",
    ]
    assert "Masking was detected by 4 of 12 checks" in page
    assert "not detected<small>31.4% accuracy</small>" in page, "AutoAttack's figure, and no tick"


def test_the_page_needs_nothing_beside_it(page):
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "<link" not in page
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) > 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_rates_stand_with_their_intervals(page, folder):
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False)
    (row,) = rows[(rows.attack == "pgd") & (rows.source == HOLDOUT) & (rows.target == NETWORKS[2])].to_dict("records")
    ends = f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}"
    assert f"{row['accuracy']:.1%}<small>{ends}</small>" in page
    assert "McNemar" in page
    (pair,) = (
        compare_ladder(_predictions(), "undefended", "satm")
        .query("network == 'compact_vgg' and rung == 'unseen'")
        .to_dict("records")
    )
    assert f'<td class="number">{pair["undefended"]:.1%} → {pair["satm"]:.1%}</td>' in page, "each pair on each rung"
    assert "and one-off accuracy 1-off" in page
    assert "python -m satm_tf.train --config config.yaml" in page
    assert "left out, no label: 10" in page


def test_every_figure_is_a_png_with_its_numbers_beside_it(page, folder):
    drawn = sorted((folder / "figures").glob("*.png"))
    assert {path.with_suffix(".csv") for path in drawn} == set((folder / "figures").glob("*.csv"))
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [*drawn, *(folder / "gallery").glob("*.png")]
    assert sorted(map(base64.b64decode, embedded)) == sorted(path.read_bytes() for path in pictures)
    matrix = pd.read_csv(folder / "figures" / "matrix_pgd_0.125.csv", index_col="source")
    assert matrix.shape == (6, 5)
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False)
    cell = rows[(rows.attack == "pgd") & (rows.source == NETWORKS[0]) & (rows.target == NETWORKS[3])]
    assert matrix.loc[NETWORKS[0], NETWORKS[3]] == cell.accuracy.item()
    rates = pd.read_csv(folder / "figures" / "accuracy_co_train_satm.csv", index_col="epoch")
    assert list(rates) == ["compact_vgg, clean", "compact_vgg, adversarial"]
    assert rates["compact_vgg, adversarial"].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])
    losses = pd.read_csv(folder / "figures" / "loss_fine_tune_vgg.csv", index_col="epoch")
    assert losses["validation"].tolist() == pytest.approx([2.1, 1.9, 1.7, 1.5])
    curves = pd.read_csv(folder / "figures" / "epsilons_fgsm_satm_compact_vgg.csv", index_col="epsilon")
    assert list(curves.index) == [0.0, 0.0625, 0.125]
    assert not [name for name in curves if "undefended" in name], "another scheme's networks are no attackers"


@pytest.mark.parametrize(
    ("kept", "rows", "sections"),
    [
        # The clean images, and the first cell under an attack.
        ("results.csv", 6, {"Is it masking?", "Accuracy", "Transfer matrix"}),
        ("checks.csv", None, {"Is it masking?", "Every check, with its figures"}),
        ("metrics.csv", 4, {"Training"}),
        ("config.yaml", None, {"How it was made"}),
    ],
)
def test_what_is_absent_is_left_out(folder, tmp_path, kept, rows, sections):
    lines = (folder / kept).read_text().splitlines(keepends=True)
    (tmp_path / kept).write_text("".join(lines[: rows and rows + 1]))
    assert set(re.findall("<h2>(.*?)</h2>", write_report(tmp_path).read_text())) == sections


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checks\.csv, results\.csv"):
        write_report(tmp_path)


def test_folds_are_averaged(tmp_path):
    frame = _predictions().frame(ordered=False).query("epsilon in (0.0, 0.0625)")  # one attack, so one heat map
    frames = [frame.assign(fold=fold) for fold in range(3)]
    pd.concat(frames).to_csv(tmp_path / "results.csv", index=False)
    page = write_report(tmp_path).read_text()
    assert "of each of 3 folds" in page
    assert "<small>± 0.0, n = 3</small>" in page
    assert "one-off" not in page.lower(), "classes without an order"


def test_in_a_real_browser(folder):
    from playwright.sync_api import sync_playwright

    browser_path = find_browser()
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium's own sandbox cannot start.
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        try:
            for width in (380, 1280):
                page = browser.new_page(viewport={"width": width, "height": 800})
                said, asked = [], []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.goto(f"file://{folder / 'report.html'}")
                assert said == []
                assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
                top = "e => e.getBoundingClientRect().top"
                assert page.eval_on_selector(".answer", top) < 200, "the sentences are what is seen first"
                assert page.eval_on_selector("main img", top) < 800, "and the chart's head without scrolling"
                assert page.evaluate("document.documentElement.scrollHeight") < (2800 if width > 500 else 4000)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                # Whatever is wider than the page must be inside something that scrolls.
                outside = page.evaluate(
                    """() => [...document.body.querySelectorAll('*')]
                    .filter(e => !e.closest('.scroll > *') && e.getBoundingClientRect().right > innerWidth + 0.5)
                    .map(e => e.outerHTML.slice(0, 80))"""
                )
                assert outside == []
                pictures = page.evaluate(
                    "() => [...document.images].map(i => [i.alt.trim().length, i.complete && i.naturalWidth, i.width])"
                )
                assert len(pictures) > 10
                assert all(words > 20 and loaded and shown > 250 for words, loaded, shown in pictures)
                assert page.title() == EVIL, "a name is text, whatever is in it"
                size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
                assert size >= 12, "too small to read"
            assert len(page.pdf(format="A4")) > 50_000
        finally:
            browser.close()
