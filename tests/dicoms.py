"""DICOM ultrasound for tests, from drawn frames: every syntax, colour and depth that is read."""

import io
import tempfile

import gdcm
import numpy as np
from conftest import ellipse_pair
from PIL import Image
from pydicom import dcmread
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence

SYNTAXES = {
    "implicit": uids.ImplicitVRLittleEndian, "explicit": uids.ExplicitVRLittleEndian,
    "big": uids.ExplicitVRBigEndian, "rle": uids.RLELossless, "jpeg": uids.JPEGBaseline8Bit,
    "lossless14": uids.JPEGLossless, "lossless": uids.JPEGLosslessSV1,
    "extended": uids.JPEGExtended12Bit, "j2k": uids.JPEG2000Lossless, "j2k lossy": uids.JPEG2000,
}  # fmt: skip
GRAY = ("MONOCHROME2", "MONOCHROME1", "PALETTE COLOR")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
ONLY_IN = {
    "YBR_FULL_422": ("implicit", "explicit", "big", "jpeg", "extended"),
    "YBR_RCT": ("j2k",), "YBR_ICT": ("j2k lossy",),
}  # fmt: skip
EVERY = [  # syntax, colour, bits
    (syntax, photometric, bits)
    for syntax in SYNTAXES
    for photometric in GRAY + COLOURS
    for bits in (8, 12, 16)
    if bits == 8 or (photometric.startswith("MONO") and syntax not in ("jpeg", "extended"))
    if syntax in ONLY_IN.get(photometric, SYNTAXES)
]
BY_PILLOW = (*(uids.UID(SYNTAXES[key]) for key in ("jpeg", "extended", "j2k", "j2k lossy")),)
ABOUT = {
    "Modality": "US", "Manufacturer": "Phantom", "ImageType": ["ORIGINAL", "PRIMARY"],
    "PatientName": "Phantom^Anna", "PatientID": "PHANTOM-1", "PatientBirthDate": "19700101",
    "PatientSex": "F", "StudyDate": "20240229", "StudyTime": "101530", "StudyID": "S1",
    "AccessionNumber": "A1", "ReferringPhysicianName": "", "SeriesNumber": 3, "InstanceNumber": 5,
    "PatientOrientation": None, "ContentDate": "20240229", "ContentTime": "101611",
}  # fmt: skip


def drawn(count: int = 3, height: int = 61, width: int = 74) -> np.ndarray:
    """Frames with an ellipse each, uint8 (count,H,W); of no size that is a multiple of 8."""
    rng = np.random.default_rng(7)
    return np.stack([ellipse_pair(rng, height, width)[0] for _ in range(count)])


def painted(gray: np.ndarray) -> np.ndarray:
    """Smooth colours over gray, uint8 (…,3)."""
    rows = np.linspace(0, 1, gray.shape[-2])[:, None] * np.ones(gray.shape)
    return np.stack([gray, gray * (1 - rows), 200 * rows], axis=-1).astype(np.uint8)


def make_us(
    frames,
    *,
    syntax: str = "explicit",
    photometric: str = "MONOCHROME2",
    spacing_mm: tuple[float, float] | None = (0.08, 0.08),
    bits: int = 8,
    uid: str = "1.2.826.0.1.3680043.10.1.1",
    **attributes,
) -> Dataset:
    """Make an ultrasound object: of one frame (H,W) or (H,W,3), or of several, uint8.

    `syntax` is a key of SYNTAXES, `photometric` one of GRAY and COLOURS, `spacing_mm` of rows and
    columns, None for no region; study and series are named by `uid`. Any other keyword is set last;
    None deletes it.
    """
    frames, syntax, colour = np.asarray(frames), SYNTAXES[syntax], photometric in COLOURS
    several = frames.ndim - (frames.shape[-1] == 3) == 3
    stack = frames if several else frames[None]  # (N,H,W[,3])
    if colour and stack.shape[-1] != 3:
        stack = np.repeat(stack[..., None], 3, axis=-1)
    if photometric == "MONOCHROME1":
        stack = 255 - stack
    if bits > 8:  # 255 becomes the highest level
        stack = np.rint(stack * ((2**bits - 1) / 255)).astype(np.uint16)
    order = "<" if syntax.is_little_endian else ">"
    kind = "UltrasoundMultiFrameImageStorage" if several else "UltrasoundImageStorage"
    fields = ABOUT | {
        "SOPClassUID": getattr(uids, kind), "SOPInstanceUID": uid,
        "StudyInstanceUID": uid[:60].rsplit(".", 1)[0] + ".7", "SeriesInstanceUID": uid[:60] + ".8",
        "SamplesPerPixel": 3 if colour else 1, "PhotometricInterpretation": photometric,
        "Rows": stack.shape[1], "Columns": stack.shape[2], "BitsAllocated": 16 if bits > 8 else 8,
        "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0,
    }  # fmt: skip
    if colour:
        fields["PlanarConfiguration"] = 0
    if several:
        fields |= {"NumberOfFrames": len(stack), "FrameTime": 40}
        fields["FrameIncrementPointer"] = 0x00181063
    if photometric == "PALETTE COLOR":  # the identity
        levels = (np.arange(256) * 256).astype(f"{order}u2").tobytes()
        for name in ("Red", "Green", "Blue"):
            fields[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            fields[f"{name}PaletteColorLookupTableData"] = levels
    if spacing_mm:
        region = make_region(spacing_mm, *stack.shape[1:3])
        fields["SequenceOfUltrasoundRegions"] = Sequence([region])
    if syntax in BY_PILLOW[:2]:
        fields |= {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1"}
        fields["LossyImageCompressionRatio"] = "5"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    for keyword, value in fields.items():
        setattr(ds, keyword, value)
    _encode(ds, stack, syntax, order)
    for keyword, value in attributes.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            del ds[keyword]
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "")
    return ds


def make_region(spacing_mm: tuple[float, float], rows: int, columns: int, **attributes) -> Dataset:
    """Make an ultrasound region of 2D tissue over the whole frame."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns - 1, rows - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaY, region.PhysicalDeltaX = (each / 10 for each in spacing_mm)
    for keyword, value in attributes.items():
        setattr(region, keyword, value)
    return region


def to_bytes(dataset: Dataset) -> bytes:
    """Write an object as a DICOM file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def mutate(data: bytes, rng) -> bytes:
    """One of the ways in which a file is damaged, or made to do damage."""
    data, kind = bytearray(data), rng.integers(5)
    header = len(data) if rng.random() < 0.3 else min(len(data), 1800)
    start, end = sorted(int(each) for each in rng.integers(132, header - 4, 2))
    if kind == 0:  # flipped bits
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(header)] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:  # a wrong length, perhaps a huge one
        value = [0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, 12][rng.integers(6)]
        data[start : start + 4] = value.to_bytes(4, "little")
    elif kind == 3:  # another VR
        found = max(data.find(vr, start, header) for vr in (b"US", b"LO", b"CS", b"UI", b"IS"))
        start = max(found, start)
        names = [b"UN", b"SQ", b"OB", b"US", b"FD", b"PN", b"ZZ", b"UT"]
        data[start : start + 2] = names[rng.integers(len(names))]
    else:  # a part is missing, comes twice, or is garbage
        part = data[start:end]
        data[start:end] = [b"", part * 2, rng.bytes(len(part))][rng.integers(3)]
    return bytes(data)


def _encode(ds: Dataset, stack: np.ndarray, syntax, order: str) -> None:
    """Set the pixel data of an object, from frames (N,H,W) or RGB (N,H,W,3)."""
    photometric, codes = ds.PhotometricInterpretation, []
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian if syntax.is_compressed else syntax
    if syntax in BY_PILLOW[2:]:
        if photometric == "YBR_FULL":
            stack = convert_color_space(stack, "RGB", "YBR_FULL")
        how = {"no_jp2": True, "irreversible": photometric == "YBR_ICT"}
        how["mct"] = int(photometric in ("YBR_RCT", "YBR_ICT"))
        for frame in stack:
            codes.append(file := io.BytesIO())
            Image.fromarray(frame).save(file, "JPEG2000", **how)
    elif syntax in BY_PILLOW[:2]:
        how = {
            "RGB": {"keep_rgb": True}, "YBR_FULL": {"subsampling": 0},
            "YBR_FULL_422": {"subsampling": 1},
        }.get(photometric, {})  # fmt: skip
        for frame in stack:
            codes.append(file := io.BytesIO())
            Image.fromarray(frame).save(file, "JPEG", quality=95, **how)
    elif photometric.startswith("YBR"):
        stack = convert_color_space(stack, "RGB", "YBR_FULL")
    if photometric == "YBR_FULL_422" and not codes:  # Y Y Cb Cr, colour of each second column
        assert stack.shape[2] % 2 == 0, "needs an even number of columns"
        pairs = stack[:, :, ::2, 0], stack[:, :, 1::2, 0], stack[:, :, ::2, 1], stack[:, :, ::2, 2]
        stack = np.stack(pairs, axis=-1)
    data = stack.astype(f"{order}u{stack.itemsize}").tobytes()
    ds.add_new("PixelData", "OB" if stack.itemsize == 1 else "OW", data + bytes(len(data) % 2))
    if codes:
        codes = [code.getvalue() + bytes(len(code.getvalue()) % 2) for code in codes]
        ds.add_new("PixelData", "OB", encapsulate(codes))
    elif syntax == uids.RLELossless:
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax.is_compressed:
        ds.add_new("PixelData", "OB", _lossless(ds, syntax))
    ds.file_meta.TransferSyntaxUID = syntax
    ds["PixelData"].is_undefined_length = syntax.is_compressed


def _lossless(ds: Dataset, syntax) -> bytes:
    """Encode by gdcm, from file to file: images made in memory it frees twice."""
    process = "JPEGLosslessProcess14" + "_1" * (syntax == uids.JPEGLosslessSV1)
    plain = ds.group_dataset(0x0028)
    if ds.SamplesPerPixel == 1:
        plain.add_new("PhotometricInterpretation", "CS", "MONOCHROME2")
    for keyword in ("SOPClassUID", "SOPInstanceUID", "PixelData"):
        plain[keyword] = ds[keyword]
    plain.file_meta = ds.file_meta
    with tempfile.TemporaryDirectory() as folder:
        plain.save_as(f"{folder}/plain.dcm", enforce_file_format=True)
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(f"{folder}/plain.dcm")
        assert reader.Read(), "gdcm could not read"
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
        change.SetInput(reader.GetImage())
        assert change.Change(), "gdcm could not encode"
        writer = gdcm.ImageWriter()
        writer.SetFileName(f"{folder}/coded.dcm")
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write(), "gdcm could not write"
        return dcmread(f"{folder}/coded.dcm").PixelData
