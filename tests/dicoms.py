"""DICOM ultrasound for tests: every syntax, colour and depth that is read, from drawn frames."""

import io
import tempfile

import gdcm
import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian, "rle": RLELossless, "jpeg": JPEGBaseline8Bit,
    "lossless14": JPEGLossless, "lossless": JPEGLosslessSV1,
}  # fmt: skip
_GDCM = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}


def make_us(
    frames,
    *,
    syntax: str = "explicit",
    photometric: str = "MONOCHROME2",
    spacing_mm: tuple[float, float] | None = (0.08, 0.08),
    bits: int = 8,
    planar: int = 0,
    uid: str = "1.2.826.0.1.3680043.10.1.1",
    **attributes,
) -> Dataset:
    """Make an ultrasound object: of one frame (H,W) or (H,W,3), or of several.

    Args:
        frames: uint8 (H,W), (N,H,W), (H,W,3) or (N,H,W,3), as they look: gray or RGB. Gray becomes
            the photometric's colours, RGB must not be asked for as MONOCHROME.
        syntax: a key of `SYNTAXES`.
        photometric: MONOCHROME1, MONOCHROME2, RGB, YBR_FULL, YBR_FULL_422 or "PALETTE COLOR".
        spacing_mm: of rows and columns, for an ultrasound region; None for no region.
        bits: 8, or up to 16 for monochrome.
        planar: PlanarConfiguration where it is not compressed.
        uid: SOPInstanceUID; study and series are derived from it by cutting its end.
        attributes: any keyword to set last; None deletes.
    """
    frames, syntax = np.asarray(frames), SYNTAXES[syntax]
    coloured = frames.shape[-1] == 3
    several = frames.ndim - coloured == 3
    stack = frames if several else frames[None]  # (N,H,W[,3])
    colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422")
    if colour and not coloured:
        stack = np.repeat(stack[..., None], 3, axis=-1)
    if not colour:
        if photometric == "MONOCHROME1":
            stack = 255 - stack
        if bits > 8:  # 255 becomes the highest level
            stack = np.rint(stack * ((2**bits - 1) / 255)).astype(np.uint16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = UltrasoundMultiFrameImageStorage if several else UltrasoundImageStorage
    ds.SOPInstanceUID = uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid[:60].rsplit(".", 1)[0] + ".7", uid[:60] + ".8"
    ds.Modality, ds.Manufacturer, ds.ImageType = "US", "Phantom", ["ORIGINAL", "PRIMARY"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Phantom^Anna", "PHANTOM-1", "19700101"
    ds.PatientSex, ds.StudyDate, ds.StudyTime, ds.StudyID = "F", "20240229", "101530", "S1"
    ds.AccessionNumber, ds.ReferringPhysicianName = "A1", ""
    ds.SeriesNumber, ds.InstanceNumber, ds.PatientOrientation = 3, 5, None
    ds.ContentDate, ds.ContentTime = "20240229", "101611"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3 if colour else 1, photometric
    ds.Rows, ds.Columns = stack.shape[1:3]
    ds.BitsAllocated = 16 if bits > 8 else 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    if colour:
        ds.PlanarConfiguration = planar
    if several:
        ds.NumberOfFrames, ds.FrameTime = len(stack), 40
        ds.FrameIncrementPointer = 0x00181063
    if photometric == "PALETTE COLOR":  # the identity
        for name in ("Red", "Green", "Blue"):
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            levels = (np.arange(256) * 257).astype(_order(syntax, 16)).tobytes()
            setattr(ds, f"{name}PaletteColorLookupTableData", levels)
    if spacing_mm:
        ds.SequenceOfUltrasoundRegions = Sequence([make_region(spacing_mm, *stack.shape[1:3])])
    codes = [_encode(frame, syntax, photometric, bits, planar) for frame in stack]
    if syntax.is_encapsulated:
        ds.PixelData = encapsulate(codes)
    else:
        data = b"".join(codes)
        ds.PixelData = data + bytes(len(data) % 2)
    ds["PixelData"].VR = "OB" if syntax.is_encapsulated or bits <= 8 else "OW"
    if syntax == JPEGBaseline8Bit:
        ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
        ds.LossyImageCompressionRatio = "5"
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
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


def _order(syntax, bits: int) -> str:
    return f"{'<' if syntax.is_little_endian else '>'}u{bits // 8}"


def _encode(frame, syntax, photometric: str, bits: int, planar: int) -> bytes:
    """Encode one frame, (H,W) or RGB (H,W,3)."""
    if syntax == JPEGBaseline8Bit:
        file = io.BytesIO()
        how = {
            "RGB": {"keep_rgb": True}, "YBR_FULL": {"subsampling": 0},
            "YBR_FULL_422": {"subsampling": 1},
        }  # fmt: skip
        Image.fromarray(frame).save(file, "JPEG", quality=95, **how.get(photometric, {}))
        code = file.getvalue()
        return code + bytes(len(code) % 2)
    if photometric.startswith("YBR"):
        frame = convert_color_space(frame, "RGB", "YBR_FULL")
    if syntax.is_encapsulated:
        frame = np.ascontiguousarray(frame)
        if syntax == RLELossless:
            rows, columns = frame.shape[:2]
            allocated = 8 * frame.itemsize
            return get_encoder(syntax).encode(
                frame, rows=rows, columns=columns, samples_per_pixel=3 if frame.ndim == 3 else 1,
                bits_allocated=allocated, bits_stored=allocated, pixel_representation=0,
                photometric_interpretation=photometric, number_of_frames=1,
                planar_configuration=0,
            )  # fmt: skip
        return _encode_lossless(frame, _GDCM[syntax], photometric, bits)
    if photometric == "YBR_FULL_422":  # Y Y Cb Cr, colour of each second column
        columns = frame.shape[1]
        assert columns % 2 == 0, "needs an even number of columns"
        pairs = [frame[:, ::2, 0], frame[:, 1::2, 0], frame[:, ::2, 1], frame[:, ::2, 2]]
        return np.stack(pairs, axis=-1).tobytes()
    if planar and frame.ndim == 3:
        frame = frame.transpose(2, 0, 1)
    return frame.astype(_order(syntax, 8 * frame.itemsize)).tobytes()


def _encode_lossless(frame, syntax: int, photometric: str, bits: int) -> bytes:
    """Encode by gdcm, from file to file: images made in memory it frees twice."""
    kind = photometric if frame.ndim == 3 else "MONOCHROME2"
    plain = make_us(np.zeros(frame.shape, np.uint8), bits=bits, photometric=kind)
    plain.PixelData = frame.tobytes() + bytes(frame.nbytes % 2)
    with tempfile.TemporaryDirectory() as folder:
        plain.save_as(f"{folder}/plain.dcm", enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(f"{folder}/plain.dcm")
        assert reader.Read(), "gdcm could not read"
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change(), "gdcm could not encode"
        writer = gdcm.ImageWriter()
        writer.SetFileName(f"{folder}/coded.dcm")
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write(), "gdcm could not write"
        code = next(generate_frames(dcmread(f"{folder}/coded.dcm").PixelData, number_of_frames=1))
    return code + bytes(len(code) % 2)
