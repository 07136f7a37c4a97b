"""Tables in files: CSV and parquet as data of a run, from training to predictions, with texts and gaps."""

import json
import math

import numpy as np
import pytest
import torch

import sidestep
from sidestep import data, rules
from sidestep.cli import main
from sidestep.data.tables.files import read_table
from sidestep.errors import DataError, InputError
from sidestep.noise import Noise

pytestmark = pytest.mark.filterwarnings("ignore::sidestep.notices.DataNotice")

RULE = ["local-loss", "--hidden", "16", "--steps", "120", "--batch", "32"]


def flowers(path, rows=120, more=""):
    """Two kinds that length and colour tell, with gaps; a column of one value, one of names, one that counts."""
    drawn = Noise(5).normal(2 * rows).view(rows, 2).tolist()
    lines = ["Id,length,width,colour,same,note,kind"]
    for row, (a, b) in enumerate(drawn):
        kind = row % 2
        length = "" if row % 9 == 4 else f"{5 + 2 * kind + 0.3 * a:.3f}"
        colour = "NA" if row % 7 == 3 else ["red", "blue"][kind if row % 5 else 1 - kind]
        lines.append(f'{row},{length},{b:.3f},{colour},1,"flower, {row}",{["rose", "lily"][kind]}')
    path.write_text("\n".join(lines) + "\n" + more)
    return path


def out(capsys, *words):
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr()


def refused(capsys, *words):
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_table_goes_from_training_to_eval_and_is_resumed(tmp_path, capsys):
    file, run = flowers(tmp_path / "flowers.csv"), tmp_path / "run"
    said = out(capsys, "train", *RULE, "--data", file, "--target", "kind", "--out", run)
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in said.out.splitlines() if line}
    assert lines["kind"] == "target 0 2 classes: lily 60, rose 60"
    assert lines["length"].startswith("number 13 mean ")
    assert lines["colour"] == "category 17 blue, red"
    for column, why in (("Id", "counts the rows"), ("same", "is 1 in every"), ("note", "names, no categories")):
        assert lines[column].startswith("left out")
        assert f"column '{column}' is left out" in said.err
        assert why in said.err
    judged = json.loads(out(capsys, "eval", run, "--json").out)
    assert judged["accuracy"] > 0.8
    assert judged["images"] == 24
    again = json.loads(out(capsys, "train", *RULE[:-4], "--steps", "130", "--resume", "--out", run, "--json").out)
    assert again["steps"] == 130
    whole = tmp_path / "whole"
    out(capsys, "train", *RULE[:-4], "--steps", "130", "--batch", "32", "--data", file, "--target", "kind",
        "--out", whole)  # fmt: skip
    one, other = (sidestep.load_run(each).net.state_dict() for each in (run, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)

    loaded = sidestep.load_run(run)
    rows = tmp_path / "rows.csv"
    rows.write_text("note,colour,width,length\na,red,0.1,5.0\nb,,0.1,\nc,green,-0.2,7.1\n")
    with pytest.warns(data.DataNotice, match="'green' in 1 row, which no train row had"):
        scores = loaded.predict(rows)
    assert [loaded.task.class_names[k] for k in scores.argmax(1).tolist()][::2] == ["rose", "lily"]

    for cells, between, named in (
        (("5.0", "5.0", "five", "six"), ",", "five"),
        (("5,0", "5,5", "five", "six"), ";", "five"),  # with a decimal comma
        (("900", "950", '"1,234"', "900"), ",", "1,234"),  # which is none here
        (("five", "six", "five", "six"), ",", "five"),
    ):
        lines = [
            "note,colour,width,length".replace(",", between),
            *(f"a{between}red{between}1{between}{x}" for x in cells),
        ]
        rows.write_text("\n".join(lines))
        with pytest.raises(
            InputError, match=f"'length' held numbers in training, but holds texts now, such as '{named}'; "
        ):
            loaded.predict(rows)

    flowers(file, more="121,5.0,0.1,red,1,other,rose\n")
    assert "is not what" in refused(capsys, "eval", run)
    assert "was started otherwise" in refused(capsys, "train", *RULE, "--resume", "--out", run)
    elsewhere = json.loads(out(capsys, "eval", run, "--data", file, "--json").out)
    assert elsewhere["images"] == 121  # a table of its own: all of it, encoded as in training


def test_parquet_gives_what_csv_gives(tmp_path):
    pandas = pytest.importorskip("pandas")
    file = flowers(tmp_path / "flowers.csv")
    pandas.read_csv(file, skipinitialspace=True).to_parquet(tmp_path / "flowers.parquet")
    sets = [data.load(tmp_path / name, target="kind") for name in ("flowers.csv", "flowers.parquet")]
    for split in ("train", "validation", "test"):
        one, other = (getattr(found, split) for found in sets)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_columns_are_those_of_train_alone(tmp_path):
    file = flowers(tmp_path / "flowers.csv")
    found = data.load(file, target="kind")
    names = [column.name for column in found.table.columns.columns]
    assert names == ["length", "width", "colour"]
    assert found.train.images.shape == (86, 2 + 1 + 3)  # a gap's own column beside length and colour
    widths = found.train.images[:, 2].double()
    assert math.isclose(float(widths.mean()), 0, abs_tol=1e-6)
    assert math.isclose(float(widths.std(unbiased=False)), 1, abs_tol=1e-6)
    assert abs(float(torch.cat([widths, found.test.images[:, 2].double()]).mean())) > 1e-4


def test_a_target_of_numbers_is_values_and_of_few_whole_ones_classes(tmp_path, capsys):
    file = tmp_path / "cars.csv"
    drawn = Noise(1).normal(80).tolist()
    file.write_text("x;y;doors\n" + "".join(f"{x:.3f};{3 * x + 1:.3f};{row % 3 + 2}\n".replace(".", ",")
                                            for row, x in enumerate(drawn)))  # fmt: skip
    assert np.allclose(read_table(file)[0]["x"], np.round(drawn, 3))
    run = sidestep.train(rules.LocalLoss(hidden=(32,)), file, target="y", steps=150)
    assert run.task.targets == "values"
    assert run.result["test_score"] > 0.8
    assert data.load(file, target="doors").class_names == ("2", "3", "4")
    assert data.load(file, target="doors", targets="values").targets == "values"
    assert len(data.load(file, target="y", targets="classes").class_names) == len({f"{3 * x + 1:.3f}" for x in drawn})
    place = tmp_path / "run"
    said = out(capsys, "train", *RULE, "--data", file, "--target", "doors", "--targets", "values", "--out", place)
    assert "train R2" in said.out
    assert "R2" in out(capsys, "eval", place).out


def test_few_rows_get_enough_steps(tmp_path):
    run = sidestep.train(rules.LocalLoss(hidden=(8,)), flowers(tmp_path / "f.csv"), target="kind")
    assert run.result["steps"] >= 300


BAD = {
    "a,b\n": "has no rows",
    "": "has no rows",
    "1,2\n3,4\n": "must hold the names",
    "a,a\n1,2\n": "two columns are called 'a'",
    "a,b\n1,2\n3\n": "line 3 has 1 cells, but the first line names 2",
    "a,kind\n1,x\n2,x\n": "'x' in every row",
    "a,kind\n1,\n2,\n": "no value in any row",
    "a,kind\n1,x\n1,y\n1,x\n1,y\n": "no column is left",
    "a,kind\n1,x\ninf,y\n2,x\n3,y\n4,x\n5,y\n": "infin",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_table_is_refused_in_one_sentence(text, tmp_path, capsys):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    said = refused(capsys, "train", "local-loss", "--data", file, "--target", "kind", "--out", tmp_path / "run")
    assert BAD[text] in said
    assert not (tmp_path / "run").exists()


def test_targets_that_do_not_fit_are_refused(tmp_path):
    file = flowers(tmp_path / "flowers.csv")
    with pytest.raises(InputError, match=r"no column 'knd'; did you mean 'kind'\? there are 'Id'"):
        data.load(file, target="knd")
    with pytest.raises(InputError, match="name the column to be predicted"):
        data.load(file)
    with pytest.raises(InputError, match="holds texts"):
        data.load(file, target="kind", targets="values")
    with pytest.raises(InputError, match="one column as its target"):
        data.load(file, target="kind", targets="labels")
    with pytest.raises(InputError, match="and digits is none"):
        data.load("digits", target="kind")
    (tmp_path / "latin.csv").write_bytes("a,b\né,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        data.load(tmp_path / "latin.csv", target="b")


def test_numbers_among_which_a_text_stands_are_left_out_for_that_reason(tmp_path):
    path = tmp_path / "money.csv"
    rows = [f"{row * 1.5},{'n/a' if row % 9 == 0 else row * 7},{'none' if row % 20 == 0 else row * 3},{row % 2}"
            for row in range(60)]  # fmt: skip
    path.write_text("\n".join(["x,gaps,odd,kind", *rows]) + "\n")
    with pytest.warns(data.DataNotice, match="'odd' is left out: most of its cells are numbers, but 'none' is none"):
        found = data.load(path, target="kind")
    names = [column.name for column in found.table.columns.columns]
    assert "gaps" in names
    assert "odd" not in names


@pytest.mark.parametrize("row", range(0, 200, 29))
def test_a_text_among_numbers_is_named_wherever_it_stands(row, tmp_path):
    """In train, validation or test; where the column is left out, and where it has few enough values for categories."""
    path = tmp_path / "ages.csv"
    lines = [f"{'forty' if at == row else at % 25},{'oops' if at == row else at * 1.5},{at % 2}" for at in range(200)]
    path.write_text("\n".join(["age,income,kind", *lines]) + "\n")
    with pytest.warns(data.DataNotice) as told:
        found = data.load(path, target="kind", validation=0.2)
    said = [str(each.message) for each in told]
    assert any(
        "'age' is taken as categories: most of its cells are numbers, but 'forty' is none" in line for line in said
    )
    assert any("'income' is left out: most of its cells are numbers, but 'oops' is none" in line for line in said)
    assert [column.name for column in found.table.columns.columns] == ["age"]
    with pytest.raises(InputError, match="most cells of the target 'income' are numbers, but 'oops' is none: leave a"):
        data.load(path, target="income")
    with pytest.raises(
        InputError, match="holds texts, such as 'oops', and values must be numbers; leave a cell without"
    ):
        data.load(path, target="income", targets="values")
    assert data.load(path, target="age", targets="classes").classes == 26


@pytest.mark.parametrize("days", [("2026-01-05", "2026-02-28"), ("5.1.2026", "28.2.2026"), ("1/5/26 8:15", "2/28/26")])
def test_dates_are_no_categories_however_few_there_are(days, tmp_path, recwarn):
    rows = [f"{row},{days[row % 2]},{('rose', 'lily')[row % 3 > 0]}" for row in range(200)]
    file = tmp_path / "days.csv"
    file.write_text("length,day,kind\n" + "\n".join(rows).replace("1,", "1.5,"))
    found = data.load(file, target="kind")
    assert found.table.columns.names == ["length"]
    said = [str(each.message) for each in recwarn]
    assert any(f"column 'day' is left out: its texts are dates, such as '{days[0]}'" in each for each in said)
    file.write_text(file.read_text().replace(days[1], "later"))
    assert data.load(file, target="kind").table.columns.names == ["length", "day"]
