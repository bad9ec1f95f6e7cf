"""CSV files of images: their lines, values, names and encodings."""

import logging

import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data import folder_listing
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.files import splits_of
from flax_resnet.errors import DataError

FILES = [f"{kind}{number}.png" for kind in "ab" for number in range(3)]
ROWS = [f"{file},{file[0]}" for file in FILES]


@pytest.fixture
def write(tmp_path):
    """Write a table beside its images, and return the settings that read it."""
    folder_listing.log_once.cache_clear()
    for file in FILES:
        Image.new("RGB", (4, 4)).save(tmp_path / file)

    def write(content, **settings):
        text = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "t.csv").write_bytes(text)
        return Data(source="csv", path=str(tmp_path / "t.csv"), eval_fraction=0.3, **settings)

    return write


def labels_of(data):
    """Return {file: class} of both splits."""
    found = {}
    for train in (True, False):
        source = open_source(data, train=train)
        labels = (source.class_names[label] for label in source.labels())
        found |= zip(
            (source.describe(i).split("/")[-1] for i in range(len(source))), labels, strict=True
        )
    return found


def table(*rows, header="path,label"):
    return "\n".join([header, *rows]) + "\n"


EXPECTED = {file: file[0] for file in FILES}


@pytest.mark.parametrize(
    "content",
    [
        table(*ROWS),
        table(*ROWS).encode("utf-8-sig"),
        table(*ROWS).replace("\n", "\r\n"),
        table(*ROWS).replace("\n", "\r"),
        table(*ROWS).replace(",", ", "),
        table(*ROWS).replace(",", " ,\t"),
        table(*ROWS).replace("\n", ",\n"),  # a column without a name or a value
        table(*ROWS).replace("\n", "\n\n \n,\n"),
        table(*[f'"{file}", "{file[0]}"' for file in FILES]),
        table(*[f"./{row}" for row in ROWS]),
        table(*[f"{row}," for row in ROWS], header="path,label,split"),
    ],
    ids=["plain", "BOM", "CRLF", "CR", "blank", "blanks", "comma", "blank lines", "quotes", "./", "no split"],
)  # fmt: skip
def test_the_form_of_a_table_does_not_matter(write, content):
    assert labels_of(write(content)) == EXPECTED


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (table(*ROWS, "x.png,  "), 8),
        (table(*ROWS, "  ,a"), 8),
        (table(*ROWS, "x.png"), 8),
        (table("", "", *ROWS, "", "x.png,"), 11),
        (table('"two\nlines.png",a', *ROWS, "x.png,"), 10),
        (table("", "", *ROWS).replace("b0.png", "gone.png"), 7),
        (table("", *ROWS).replace("b0", "b\0"), 6),
        (table("", *ROWS, '"' + "x" * 140_000), 9),
        (table("", *ROWS).replace("a1.png", '"a1.png'), 4),
        (table("", *ROWS, '"x"y.png,a'), 9),
        (table("", *ROWS, "x,y.png,a"), 9),
        (table("", *ROWS, "a0.png,b"), 9),
        (table(*ROWS, 'x.png,"two\nlines"'), 8),
        (table(*ROWS).encode() + b"x.png,caf\xe9\n", 8),
        (table("", *ROWS).replace("a1.png,a", 'a1.png,"a"x'), 4),
        (table("", *ROWS).replace("a1.png,a", "a1.png,a,b"), 4),
        (table("", *ROWS, header="path,label,note").replace("a1.png,a", "a1.png,a,\0"), 4),
        (table("", *ROWS, header="path,label,note").encode().replace(b"a1.png,a", b"a1.png,a,\xe9"), 4),
        (table(*ROWS).encode("utf-16"), 1),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_the_line(write, content, line):
    data = write(content)
    with refused(data.path, kind=DataError) as caught:
        labels_of(data)
    assert f"line {line} " in caught.value.problem


def test_the_columns_are_needed_once(write):
    for header in ("path,label,path", "path;label", "file,label", ""):
        data = write(table(*ROWS, header=header))
        with refused("data.path", data.path, DataError):
            labels_of(data)


def test_equal_names_in_other_forms_are_one_class(write):
    rows = [
        *ROWS[:3],
        *(
            f"{file},{name}"
            for file, name in zip(FILES[3:], ("\u00e9", "e\u0301", ' "\u00e9 "'), strict=True)
        ),
    ]
    assert {*labels_of(write(table(*rows))).values()} == {"a", "\u00e9"}


def split_table(*splits, extra=()):
    rows = [f"{row},{split}" for row, split in zip(ROWS, splits, strict=True)]
    return table(*rows, *extra, header="path,label,split")


def test_a_split_in_other_cases_is_one_split(write):
    data = write(split_table("train", "Train", "TEST", "train ", "test", "TRAIN"))
    sides = [open_source(data, train=train) for train in (True, False)]
    assert [len(side) for side in sides] == [4, 2]
    assert splits_of(data.path) == ["TEST", "train"]


def test_rows_without_a_split_are_counted(write, caplog):
    caplog.set_level(logging.INFO, "flax_resnet")
    found = labels_of(write(split_table("train", "test", "", "train", "test", " ")))
    assert found.keys() == {"a0.png", "a1.png", "b0.png", "b1.png"}
    (line,) = [record.getMessage() for record in caplog.records]
    assert " 2 " in line


def test_the_classes_are_those_of_the_training_split(write, caplog):
    data = write(split_table("train", "train", "train", "train", "test", "test"))
    held = open_source(data, train=False)
    assert held.class_names == ("a", "b")
    assert held.labels().tolist() == [1, 1]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "(a)" in line
    data = write(split_table(*["train"] * 6, extra=("a9.png,c,test", "b9.png,c,other")))
    assert open_source(data, train=True).class_names == ("a", "b")
    with refused(data.path, kind=DataError) as caught:
        open_source(data, train=False)
    assert "line 8 " in caught.value.problem
    assert "'c'" in caught.value.problem


def test_a_table_of_evaluation_images_alone_can_be_evaluated(write):
    source = open_source(write(split_table(*["test"] * 6)), train=False)
    assert source.labels().tolist() == [0, 0, 0, 1, 1, 1]


def test_blanks_that_belong_to_a_files_name_are_kept(write, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / " c.png", "PNG")
    found = labels_of(write(table(*ROWS, '" c.png",a')))
    assert found == EXPECTED | {" c.png": "a"}
