import base64
import json
import re
import time

import cv2
import numpy as np
import pandas as pd
import pytest
from chrome import FETCHED, console_errors, open_chromium, show

from cassava_kit.cli.clean import clean_files
from cassava_kit.competition import CASSAVA, VARIABLE, Competition, write_facts
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import Caps, read_decisions, read_noise_report, write_noise_report
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.predictions import Header, make_predictions, write_predictions
from cassava_kit.files import write_json
from cassava_kit.report.review import Extras, ReviewFiles, find_conflicts, review_files, review_rows, write_review
from cassava_kit.report.thumbnails import LARGEST_PHOTO, NEIGHBOUR, PHOTO, photo_side, thumbnail

CLASSES = 5


def report(n=30, flagged=12):
    """Rows 0..n-1, the first `flagged` suspicious."""
    label = np.arange(n) % CLASSES
    suggested = np.where(np.arange(n) < flagged, (label + 3) % CLASSES, label)
    return pd.DataFrame(
        {
            "image_id": [f"{i:03d}.jpg" for i in range(n)],
            "label": label,
            "suggested_label": suggested,
            "label_quality": np.linspace(0.01, 0.99, n),
            "keep": np.arange(n) >= 4,
        }
    )


@pytest.fixture
def folder(tmp_path):
    """A competition folder of 30 small pictures, one of them broken, and a noise report."""
    images = tmp_path / "data" / "train_images"
    images.mkdir(parents=True)
    for i in range(30):
        picture = np.full((60, 80, 3), i * 8, np.uint8)
        cv2.imwrite(str(images / f"{i:03d}.jpg"), picture)
    (images / "005.jpg").write_bytes(b"\xff\xd8 broken")
    write_noise_report(tmp_path / "clean.csv", report())
    return tmp_path


def page_data(path):
    text = path.read_text()
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))


def test_suspicious_rows_come_worst_first_and_no_others():
    rows = review_rows(report())
    assert [row["id"] for row in rows] == [f"{i:03d}.jpg" for i in range(12)]
    assert rows[1] == {
        "id": "001.jpg",
        "label": 1,
        "suggested": 4,
        "quality": pytest.approx(0.01 + 0.98 / 29),
        "keep": False,
        "agreement": None,
        "votes": [],
        "conflicts": [],
        "copies": 0,
        "near": [],
    }
    assert [row["id"] for row in review_rows(report(), limit=3)] == ["000.jpg", "001.jpg", "002.jpg"]


def test_near_duplicates_with_two_labels_come_first_even_unsuspected():
    groups = {"020.jpg": 7, "021.jpg": 7, "022.jpg": 8, "027.jpg": 8}
    rows = review_rows(report(), Extras(groups=groups))
    assert [row["id"] for row in rows[:2]] == ["020.jpg", "021.jpg"], "022 and 027 agree: both are class 2"
    assert rows[0]["conflicts"] == [{"id": "021.jpg", "label": 1}]
    assert find_conflicts({"a": 1, "b": 1}, {"a": 0, "b": 0, "stranger": 0}) == {}


def test_votes_are_members_own():
    r = report()
    p = np.stack([np.eye(CLASSES)[r["suggested_label"]], np.full((30, CLASSES), 0.2)])
    evidence = Evidence(
        ("sure", "blind"), r["image_id"].to_numpy(), r["label"].to_numpy(), r["label"].to_numpy(), p, ""
    )
    votes = review_rows(r, Extras(evidence=evidence))[2]["votes"]
    assert votes[0] == {"name": "sure", "label": 0, "p": 1.0, "given": 0.0}
    assert votes[1]["name"] == "blind" and votes[1]["given"] == pytest.approx(0.2)


def test_the_page_needs_nothing_but_itself(folder):
    message = write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    assert "12 photographs" in message
    text = (folder / "review.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text) and "http" not in text
    data = page_data(folder / "review.html")
    assert data["thumbnails"]["005.jpg"] == "", "a broken picture is shown as such"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data["thumbnails"]["003.jpg"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (60, 80, 3) and abs(int(picture[30, 40, 0]) - 24) < 4


def test_thumbnails_are_small_and_keep_their_shape(tmp_path):
    cv2.imwrite(str(tmp_path / "large.jpg"), np.zeros((600, 800, 3), np.uint8))
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(thumbnail(tmp_path / "large.jpg", 280)), np.uint8), 1)
    assert picture.shape == (210, 280, 3)
    assert thumbnail(tmp_path / "none.jpg", 280) == ""


def test_two_thousand_photographs_and_their_neighbours_stay_below_thirty_megabytes(tmp_path):
    """Leaves of many sizes and a camera's noise: about as many bytes as a photograph of a field."""
    rng = np.random.default_rng(0)
    picture = np.full((600, 800, 3), (60, 110, 70), np.uint8)
    for _ in range(250):
        colour = [int(c) for c in rng.integers(20, 220, 3)]
        axes, centre = rng.integers(6, 60, 2).tolist(), rng.integers(0, 800, 2).tolist()
        cv2.ellipse(picture, centre, axes, float(rng.integers(0, 180)), 0, 360, colour, -1)
    picture = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "field.jpg"), picture)
    photo, neighbour = (len(thumbnail(tmp_path / "field.jpg", side)) for side in (PHOTO, NEIGHBOUR))
    assert photo > 4000, "a picture this simple shows nothing of a photograph's size"
    assert 2000 * photo + 4000 * neighbour < 30e6


def test_classes_are_those_that_the_report_names(folder, monkeypatch):
    """A report of Cassava keeps its classes on a page that is made in another competition's folder."""
    write_json(folder / "clean.json", {"kind": "noise-report", **CASSAVA.task.header()})
    write_facts(folder / "other.json", Competition(slug="flowers", title="F", classes=("rose", "tulip")))
    monkeypatch.setenv(VARIABLE, str(folder / "other.json"))
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    assert page_data(folder / "review.html")["classes"] == [f"{k} {name}" for k, name in enumerate(CASSAVA.classes)]
    (folder / "clean.json").unlink()
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    assert page_data(folder / "review.html")["classes"][:3] == ["0 rose", "1 tulip", "class 2"], "older: this folder's"
    write_json(folder / "clean.json", [])
    with pytest.raises(UserError, match=r"clean.json must hold a JSON object, got list"):
        write_review(folder / "clean.csv", folder / "data", folder / "review.html")


def test_a_file_name_cannot_end_the_script(folder):
    name = "</script><b>x.jpg"
    frame = report(3, 1).assign(image_id=[name, "001.jpg", "002.jpg"])
    write_noise_report(folder / "clean.csv", frame)
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    assert page_data(folder / "review.html")["rows"][0]["id"] == name
    assert "</script><b>" not in (folder / "review.html").read_text()


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match="noise report"):
        write_review(folder / "no.csv", folder / "data", folder / "review.html")
    with pytest.raises(FileNotFoundError, match="--data must be the competition folder"):
        write_review(folder / "clean.csv", folder, folder / "review.html")
    with pytest.raises(ValueError, match="--oof needs --folds"):
        files = ReviewFiles(oof=(folder / "oof.csv",))
        review_files(folder / "clean.csv", folder / "data", folder / "r.html", files=files)


def test_what_cannot_be_is_refused_before_any_image_is_read(folder, monkeypatch):
    monkeypatch.setattr("cassava_kit.data.fingerprints.fingerprint", lambda *_, **__: pytest.fail("an image was read"))
    report, data = folder / "clean.csv", folder / "data"
    before = report.read_bytes()
    with pytest.raises(ValueError, match=r"must be an .html file"):
        review_files(report, data, report)
    assert report.read_bytes() == before
    two = ReviewFiles(embedding=folder / "e.npz", backbone=folder / "b.safetensors")
    with pytest.raises(ValueError, match="not both"):
        review_files(report, data, folder / "r.html", files=two)
    report.rename(folder / "clean.json")
    with pytest.raises(ValueError, match=r"expected a name that ends in .csv"):
        review_files(folder / "clean.json", data, folder / "r.html")


def test_nothing_suspicious_makes_no_page(folder):
    write_noise_report(folder / "clean.csv", report(30, 0).assign(keep=True))
    assert "nothing to review" in write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    assert not (folder / "review.html").exists()


@pytest.fixture
def browser(tmp_path):
    session = open_chromium(tmp_path / "profile", size=(1200, 800))
    session.downloads = tmp_path / "downloads"
    session.downloads.mkdir()
    allow = {"behavior": "allow", "downloadPath": str(session.downloads)}
    session.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    yield session
    session.quit()


def exported(browser):
    """The decisions the export button writes."""
    path = browser.downloads / "decisions.csv"
    path.unlink(missing_ok=True)
    browser.find_element("id", "export").click()
    wait_until(lambda: path.exists() and path.stat().st_size)
    return read_decisions([path])


def wait_until(happened):
    """Wait for something that the browser does, for as long as a busy machine may take."""
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_reviewer_clicks_through(folder, browser):
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    page = (folder / "review.html").as_uri()
    browser.get(page)

    def cards():
        return [card.get_attribute("data-id") for card in browser.find_elements("css selector", "article")]

    def press(*keys):
        for key in keys:
            browser.find_element("tag name", "body").send_keys(key)

    def choose(select, value):
        from selenium.webdriver.support.ui import Select

        Select(browser.find_element("id", select)).select_by_value(value)

    assert cards() == [f"{i:03d}.jpg" for i in range(12)]
    assert "0 of 12 decided" in browser.find_element("id", "progress").text
    # Keyboard: keep the first, drop the second, take the third's suggestion, call the fourth class 1, undo nothing.
    press("k", "d", "r", "1")
    assert "4 of 12 decided: 1 keep, 1 drop, 2 relabel" in browser.find_element("id", "progress").text
    made = exported(browser).set_index("image_id")
    assert made["decision"].to_dict() == {
        "000.jpg": "keep",
        "001.jpg": "drop",
        "002.jpg": "relabel",
        "003.jpg": "relabel",
    }
    assert made["label"].to_dict() == {"000.jpg": 0, "001.jpg": 1, "002.jpg": 0, "003.jpg": 1}
    # Undo takes back the last decision wherever one has moved to, and goes back to its card.
    press("l", "l", "u")
    assert set(exported(browser)["image_id"]) == {"000.jpg", "001.jpg", "002.jpg"}
    assert browser.find_element("css selector", "article.current").get_attribute("data-id") == "003.jpg"
    # Mouse: a button, and a class from the card's own list.
    fifth = browser.find_element("css selector", 'article[data-id="004.jpg"]')
    fifth.find_element("css selector", 'button[data-act="drop"]').click()
    fifth.find_element("css selector", 'select option[value="2"]').click()
    assert fifth.get_attribute("data-decision") == "relabel"
    # Filters: by given class, by pair, by state.
    choose("given", "1")
    assert cards() == ["001.jpg", "006.jpg", "011.jpg"]
    choose("given", "")
    choose("pair", "2>0")
    assert cards() == ["002.jpg", "007.jpg"]
    choose("pair", "")
    assert len(browser.find_elements("css selector", "article.current")) == 1, "cards that filters hid stay unmarked"
    choose("state", "open")
    assert cards() == ["003.jpg", *(f"{i:03d}.jpg" for i in range(5, 12))]
    choose("state", "all")
    # Progress outlives the page.
    browser.get(page)
    assert "4 of 12 decided: 1 keep, 1 drop, 2 relabel" in browser.find_element("id", "progress").text
    kept = browser.find_element("css selector", 'article[data-id="000.jpg"]')
    assert kept.get_attribute("data-decision") == "keep"
    broken = browser.find_element("css selector", 'article[data-id="005.jpg"] img.photo')
    assert broken.get_attribute("alt") == "cannot be read"
    assert browser.execute_script(FETCHED) == []
    assert console_errors(browser) == []
    # Start over, once confirmed, forgets everything.
    browser.find_element("id", "clear").click()
    browser.switch_to.alert.accept()
    assert "0 of 12 decided" in browser.find_element("id", "progress").text
    browser.get(page)
    assert "0 of 12 decided" in browser.find_element("id", "progress").text


def test_two_thousand_photographs_load_only_what_is_near_the_window(folder, browser):
    frame = report(2000, 2000).assign(image_id=[f"{i:04d}.jpg" for i in range(2000)], keep=True)
    picture = (folder / "data" / "train_images" / "010.jpg").read_bytes()
    for name in frame["image_id"]:
        (folder / "data" / "train_images" / name).write_bytes(picture)
    write_noise_report(folder / "clean.csv", frame)
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    browser.get((folder / "review.html").as_uri())
    loaded = "return document.querySelectorAll('img.photo[src]').length"
    wait_until(lambda: browser.execute_script(loaded))
    assert 0 < browser.execute_script(loaded) < 200
    assert len(browser.find_elements("css selector", "article")) == 2000
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    last = "return !!document.querySelector('article:last-child img.photo').getAttribute('src')"
    wait_until(lambda: browser.execute_script(last))
    assert browser.execute_script(loaded) < 1000


@pytest.fixture
def journey(tmp_path, monkeypatch):
    """A competition folder of 60 striped pictures, folds, a member that is right, wrong labels, and the verb's report.

    Pictures 7 and 8 are the same photograph with two labels.
    """
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    images = tmp_path / "data" / "train_images"
    images.mkdir(parents=True)
    ids, true = np.array([f"{i:03d}.jpg" for i in range(60)]), np.arange(60) % CLASSES
    for name in ids:
        picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(images / name), cv2.resize(picture, (160, 120), interpolation=cv2.INTER_CUBIC))
    (images / "008.jpg").write_bytes((images / "007.jpg").read_bytes())
    given = np.where(np.isin(np.arange(60), [3, 21, 40]), (true + 1) % CLASSES, true)
    split = split_folds(pd.DataFrame({"image_id": ids, "label": given}), n_splits=3, seed=0)
    write_folds(tmp_path / "folds.csv", split)
    # Where the label is wrong the member is surer than on average of the class: cleanlab flags no other row.
    sure = np.where(given != true, 0.97, 0.9)[:, None]
    p = sure * np.eye(CLASSES)[true] + (1 - sure) * rng.dirichlet(np.ones(CLASSES), 60)
    header = Header(name="sure", kind="oof", fold_hash=split.hash)
    fold = split.frame["fold"].to_numpy()
    write_predictions(tmp_path / "sure.csv", make_predictions(ids, p, header=header, fold=fold))
    clean_files([tmp_path / "sure.csv"], tmp_path / "folds.csv", tmp_path / "clean.csv", caps=Caps(0.1, 1.0))
    return tmp_path


def test_votes_neighbours_and_duplicates_come_without_further_options(journey):
    message = review_files(journey / "clean.csv", journey / "data", journey / "review.html")
    assert "members' votes: sure; neighbours by coarse layout" in message
    rows = {row["id"]: row for row in page_data(journey / "review.html")["rows"]}
    assert set(rows) == {"003.jpg", "021.jpg", "040.jpg", "007.jpg", "008.jpg"}
    assert rows["021.jpg"]["votes"][0]["name"] == "sure" and rows["021.jpg"]["votes"][0]["label"] == 1
    assert rows["007.jpg"]["conflicts"] == [{"id": "008.jpg", "label": 3}]
    assert len(rows["007.jpg"]["near"]) == 4
    assert "008.jpg" not in {near["id"] for near in rows["007.jpg"]["near"]}, "the copy is shown once, as such"
    (journey / "sure.csv").unlink()
    message = review_files(journey / "clean.csv", journey / "data", journey / "review.html")
    assert "votes: not shown (give --oof and --folds)" in message


def test_an_embedding_decides_who_is_near(journey):
    angle = np.arange(60) / 10
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.savez(journey / "e.npz", image_id=np.array([f"{i:03d}.jpg" for i in range(60)]), embedding=vectors)
    files = ReviewFiles(embedding=journey / "e.npz")
    assert "neighbours by e.npz" in review_files(
        journey / "clean.csv", journey / "data", journey / "review.html", files=files
    )
    rows = {row["id"]: row for row in page_data(journey / "review.html")["rows"]}
    assert {near["id"] for near in rows["021.jpg"]["near"][:2]} == {"020.jpg", "022.jpg"}


def report_with_neighbours(journey):
    """The report of `clean --embedding`: its rows say which share of their neighbours has their label."""
    vectors = np.random.default_rng(2).normal(size=(60, 3))
    np.savez(journey / "e.npz", image_id=np.array([f"{i:03d}.jpg" for i in range(60)]), embedding=vectors)
    oof, folds, out = [journey / "sure.csv"], journey / "folds.csv", journey / "clean.csv"
    clean_files(oof, folds, out, caps=Caps(0.1, 1.0), embedding=journey / "e.npz")
    review_files(out, journey / "data", journey / "review.html")
    return read_noise_report(out).set_index("image_id")["neighbour_agreement"]


def test_the_page_knows_the_neighbours_agreement_where_the_report_does(journey):
    review_files(journey / "clean.csv", journey / "data", journey / "review.html")
    assert all(row["agreement"] is None for row in page_data(journey / "review.html")["rows"])
    agreement = report_with_neighbours(journey)
    rows = page_data(journey / "review.html")["rows"]
    assert {row["id"]: row["agreement"] for row in rows} == {row["id"]: agreement[row["id"]] for row in rows}


def test_the_page_is_sorted_by_the_neighbours_agreement_on_demand(journey, browser):
    from selenium.webdriver.support.ui import Select

    agreement = report_with_neighbours(journey)
    show(browser, journey / "review.html")

    def order():
        return [card.get_attribute("data-id") for card in browser.find_elements("css selector", "article")]

    before = order()
    Select(browser.find_element("id", "sort")).select_by_value("agreement")
    assert order() == sorted(before, key=lambda name: agreement[name])
    assert f"{100 * agreement[order()[0]]:.0f} % of neighbours" in browser.find_element("tag name", "article").text


def test_what_a_reviewer_decides_comes_back_through_clean(journey, browser):
    review_files(journey / "clean.csv", journey / "data", journey / "review.html")
    show(browser, journey / "review.html")
    body = browser.find_element("tag name", "body")
    conflicts = browser.find_elements("css selector", "article:has(.warning)")
    assert {card.get_attribute("data-id") for card in conflicts} == {"007.jpg", "008.jpg"}
    order = [card.get_attribute("data-id") for card in browser.find_elements("css selector", "article")]
    wanted = {"003.jpg": "k", "021.jpg": "d", "040.jpg": "r", "007.jpg": "0"}
    for name in order:
        body.send_keys(wanted.get(name, "l"))
    made = exported(browser)
    assert dict(zip(made["image_id"], made["decision"], strict=True)) == {
        "003.jpg": "keep",
        "021.jpg": "drop",
        "040.jpg": "relabel",
        "007.jpg": "relabel",
    }
    decisions = browser.downloads / "decisions.csv"
    oof, folds = [journey / "sure.csv"], journey / "folds.csv"
    clean_files(oof, folds, journey / "again.csv", caps=Caps(0.1, 1.0), decisions=[decisions])
    again = read_noise_report(journey / "again.csv").set_index("image_id")
    decided = ["003.jpg", "021.jpg", "040.jpg", "007.jpg"]
    assert again.loc[decided, "by_eye"].all() and again["by_eye"].sum() == 4
    assert again.loc[decided, "keep"].tolist() == [True, False, True, True], (
        "relabelled rows are trained, as relabelled"
    )
    assert again.loc["040.jpg", "suggested_label"] == 0 and again.loc["007.jpg", "suggested_label"] == 0
    assert again.loc["021.jpg", "suggested_label"] == again.loc["021.jpg", "label"]


def test_near_duplicates_are_shown_once_and_counted(folder):
    groups = {f"{i:03d}.jpg": 7 for i in (0, 5, 10, 20, 21)}
    near = {"000.jpg": ["005.jpg", "021.jpg", "013.jpg", "010.jpg", "014.jpg", "015.jpg", "016.jpg", "017.jpg"]}
    rows = {row["id"]: row for row in review_rows(report(), Extras(near=near, groups=groups))}
    first = rows["000.jpg"]
    # By hand: 5, 10 and 20 are of class 0 as 0 is; 21 is of class 1.
    assert first["conflicts"] == [{"id": "021.jpg", "label": 1}] and first["copies"] == 3
    assert [other["id"] for other in first["near"]] == ["013.jpg", "014.jpg", "015.jpg", "016.jpg"]
    assert rows["021.jpg"]["copies"] == 0 and len(rows["021.jpg"]["conflicts"]) == 4
    assert rows["001.jpg"]["copies"] == 0 and rows["001.jpg"]["conflicts"] == []


def test_fewer_photographs_are_larger():
    assert [photo_side(n) for n in (1, 200, 222, 500, 2000, 5000)] == [LARGEST_PHOTO, 720, 720, 480, PHOTO, PHOTO]
    assert all(n * photo_side(n) ** 2 <= 2000 * PHOTO**2 for n in range(223, 2001))


def keys(browser, *pressed):
    """Type into the page."""
    for key in pressed:
        browser.find_element("tag name", "body").send_keys(key)


def state(browser):
    """The current card, and each decided card's decision."""
    cards = browser.find_elements("css selector", "article[data-decision]")
    made = {card.get_attribute("data-id")[:3]: card.get_attribute("data-decision") for card in cards}
    return browser.find_element("css selector", "article.current").get_attribute("data-id")[:3], made


def test_undo_goes_back_through_all_decisions_even_after_the_page_was_closed(folder, browser):
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    page = (folder / "review.html").as_uri()
    browser.get(page)
    undo = browser.find_element("id", "undo")
    assert not undo.is_enabled()
    keys(browser, "k", "d", "h", "h", "d")  # the first: kept, then dropped
    assert state(browser) == ("001", {"000": "drop", "001": "drop"})
    keys(browser, "l", "j", "l", "d", "d")  # 003 and 004; j is no key
    browser.get(page)
    keys(browser, "u")
    assert state(browser) == ("004", {"000": "drop", "001": "drop", "003": "drop"})
    browser.find_element("id", "undo").click()
    keys(browser, "u")
    assert state(browser) == ("000", {"000": "keep", "001": "drop"})
    keys(browser, "u", "u", "u", "u")
    assert state(browser) == ("000", {}) and not browser.find_element("id", "undo").is_enabled()
    assert "0 of 12 decided" in browser.find_element("id", "progress").text
    # The same decision again is none; of a card that a filter hides, undo shows it again.
    keys(browser, "k", "h", "k", "u")
    assert state(browser) == ("000", {})
    keys(browser, "d")
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "state")).select_by_value("open")
    keys(browser, "u")
    assert state(browser) == ("000", {}) and len(browser.find_elements("css selector", "article")) == 12


def test_a_picture_is_enlarged_by_a_click_or_a_key_and_decided_on(folder, browser):
    picture = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "data" / "train_images" / "001.jpg"), picture)
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    show(browser, folder / "review.html")
    dialog, large = browser.find_element("id", "zoom"), browser.find_element("id", "large")
    small = browser.find_element("css selector", "article[data-id='001.jpg'] img.photo")
    small.click()
    assert dialog.get_attribute("open") is not None
    caption = browser.find_element("id", "caption")
    assert caption.text.startswith("001.jpg · given 1 CBSD → suggested 4 Healthy · quality 0.04")
    assert large.size["height"] > 1.5 * small.size["height"]
    assert browser.execute_script("return arguments[0].naturalWidth", large) == 720
    keys(browser, "d")
    assert caption.text.startswith("002.jpg"), "the next one, as large"
    keys(browser, "h")
    assert caption.text.endswith("· drop")
    keys(browser, "u")
    assert "drop" not in caption.text and state(browser) == ("001", {})
    keys(browser, "z")
    assert dialog.get_attribute("open") is None
    keys(browser, "z")
    assert dialog.get_attribute("open") is not None
    large.click()
    assert dialog.get_attribute("open") is None
    assert console_errors(browser) == [] and browser.execute_script(FETCHED) == []


def test_moving_keeps_the_card_clear_of_the_header(folder, browser):
    from selenium.webdriver.common.keys import Keys

    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    show(browser, folder / "review.html", size=(420, 800))
    keys(browser, "l", Keys.ARROW_RIGHT, "l", Keys.ARROW_LEFT, "h", "h")
    assert state(browser)[0] == "000"
    keys(browser, *"lllll", *"hhh")
    assert state(browser)[0] == "002"
    place = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]]"
    header, card = (browser.execute_script(place, *at) for at in (("header", "bottom"), ("article.current", "top")))
    assert header <= card < 800


def test_what_cannot_be_kept_is_said_until_the_page_is_left(folder, browser):
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    show(browser, folder / "review.html")
    assert not browser.find_element("id", "unsaved").is_displayed()
    browser.execute_script("Storage.prototype.setItem = () => { throw new Error('full') }")
    keys(browser, "k", "d")
    assert "export before you leave" in browser.find_element("id", "unsaved").text
    assert set(exported(browser)["image_id"]) == {"000.jpg", "001.jpg"}


def test_the_header_is_low_on_a_phone_and_its_panel_opens(folder, browser):
    write_review(folder / "clean.csv", folder / "data", folder / "review.html")
    show(browser, folder / "review.html", size=(420, 900))
    header, given = browser.find_element("tag name", "header"), browser.find_element("id", "given")
    assert header.size["height"] < 120 and not given.is_displayed()
    browser.find_element("id", "more").click()
    assert given.is_displayed() and browser.find_element("id", "hint").is_displayed()
    assert not browser.find_element("id", "sorting").is_displayed(), "no agreement in this report"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
    browser.find_element("id", "more").click()
    assert header.size["height"] < 120


@pytest.mark.parametrize("n_classes", [2, 40])
def test_any_number_and_any_name_of_classes(folder, browser, n_classes):
    names = [f"класс-{k}_健康_{'sehrlang' * 9}<b>$x$" for k in range(n_classes)]
    label = np.arange(30) % n_classes
    frame = report().assign(label=label, suggested_label=(label + 1) % n_classes)
    write_noise_report(folder / "clean.csv", frame)
    competition = Competition(slug="zoo", title="Zoo <1>", classes=tuple(names))
    near = {f"{i:03d}.jpg": [f"{(i + j) % 30:03d}.jpg" for j in range(1, 5)] for i in range(30)}
    extras = Extras(near=near, groups={"000.jpg": 1, "001.jpg": 1})
    write_review(folder / "clean.csv", folder / "data", folder / "review.html", extras=extras, competition=competition)
    for size in ((420, 900), (1400, 900)):
        show(browser, folder / "review.html", size=size)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
        assert console_errors(browser) == []
    card = browser.find_element("css selector", "article[data-id='000.jpg']")
    assert f"given 0 {names[0]} → suggested 1 {names[1]}" in card.text
    keys(browser, "1", "h", "z")
    assert f"relabelled as 1 {names[1]}" in browser.find_element("id", "caption").text
    assert browser.title == "Label review: Zoo <1>"


def test_the_page_holds_its_width_on_a_phone_and_in_the_dark(journey, browser):
    review_files(journey / "clean.csv", journey / "data", journey / "review.html")
    show(browser, journey / "review.html", scheme="dark", size=(420, 800))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
    shade = browser.execute_script("return getComputedStyle(document.querySelector('header')).backgroundColor")
    assert max(int(v) for v in re.findall(r"\d+", shade)[:3]) < 60, "the header is dark"
    assert console_errors(browser) == []
