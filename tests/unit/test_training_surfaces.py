import numpy as np
import pytest

from training.surfaces import DEFECTS, TEXTURES, Defect, defective, surfaces

SIDE = 64


@pytest.mark.parametrize("texture", TEXTURES)
def test_surfaces_follow_from_their_seed_and_nothing_is_clipped(texture: str) -> None:
    images = surfaces(texture, 4, side=SIDE, seed=1)
    assert images.shape == (4, SIDE, SIDE, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, surfaces(texture, 4, side=SIDE, seed=1))
    assert np.any(images != surfaces(texture, 4, side=SIDE, seed=2))
    assert np.any(images[0] != images[1])
    assert np.mean((images == 0) | (images == 255)) < 0.01


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_as_large_and_as_strong_as_it_says(texture: str, defect: Defect) -> None:
    none = Defect(defect.kind, defect.size, contrast=0.0)
    images, masks = defective(texture, defect, 6, side=SIDE, seed=5)
    area = masks.sum(axis=(1, 2))
    expected = {
        "scratch": 2 * defect.size,
        "stain": np.pi / 4 * defect.size**2,
        "missing": defect.size**2,
    }[defect.kind]
    np.testing.assert_allclose(area, expected, rtol=0.35)
    if defect.kind == "missing":
        for image, mask in zip(images[..., 0], masks, strict=True):
            assert len(np.unique(image[mask])) == 1
            assert np.mean(image) / 255 - image[mask][0] / 255 == pytest.approx(defect.contrast, abs=0.1)
        return
    # The same surfaces, and the defect's pixels alone differ by half its contrast or more.
    plain = defective(texture, none, 6, side=SIDE, seed=5)[0]
    difference = np.abs(images.astype(float) - plain)[..., 0] / 255
    assert difference.max() == pytest.approx(defect.contrast, abs=0.02)
    assert np.all(difference[masks] >= defect.contrast / 2 - 0.01)
    assert np.all(difference[~masks] <= defect.contrast / 2 + 0.01)


def test_defects_lie_wholly_inside_and_anywhere() -> None:
    _, masks = defective("cast", Defect("scratch", 20), 300, side=SIDE, seed=3)
    assert not masks[:, 0].any()
    assert not masks[:, -1].any()
    assert not masks[:, :, 0].any()
    assert not masks[:, :, -1].any()
    lengths = masks.sum(axis=(1, 2))
    assert lengths.min() > 30
    rows = [np.flatnonzero(mask.any(axis=1)).mean() for mask in masks]
    assert min(rows) < SIDE / 4 < 3 * SIDE / 4 < max(rows)
