/* As much of NIfTI-1 as the examples need: uncompressed .nii files of this machine's byte order, with sform or qform.
 *
 * Source: the NIfTI-1 standard, https://nifti.nimh.nih.gov/nifti-1 (header layout nifti1.h; quaternions, method 2).
 */
#ifndef MEDNEXT_EXAMPLES_NIFTI_H
#define MEDNEXT_EXAMPLES_NIFTI_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mednext_edge.h"

#define NIFTI_HEADER 352 /* bytes, with the four that say that no extension follows */

typedef struct nifti {
  unsigned char header[NIFTI_HEADER];
  mednext_image image; /* its voxels belong to this structure */
} nifti;

static int16_t nifti_short(const nifti *file, size_t at) {
  int16_t value;
  memcpy(&value, file->header + at, sizeof value);
  return value;
}

static float nifti_float(const nifti *file, size_t at) {
  float value;
  memcpy(&value, file->header + at, sizeof value);
  return value;
}

/* Voxel indices -> RAS mm; 0 where the header has neither sform nor qform. */
static int nifti_affine(const nifti *file, double *affine) {
  memset(affine, 0, 16 * sizeof *affine);
  affine[15] = 1;
  if (nifti_short(file, 254) > 0) { /* sform_code; srow_x, srow_y and srow_z follow one another */
    for (int i = 0; i < 12; ++i) affine[i] = nifti_float(file, 280 + 4 * (size_t)i);
    return 1;
  }
  if (nifti_short(file, 252) <= 0) return 0; /* qform_code */
  const double b = nifti_float(file, 256), c = nifti_float(file, 260), d = nifti_float(file, 264);
  const double rest = 1 - (b * b + c * c + d * d), a = rest > 0 ? sqrt(rest) : 0;
  const double last = nifti_float(file, 76) < 0 ? -1 : 1; /* pixdim[0] */
  const double size[3] = {nifti_float(file, 80), nifti_float(file, 84), last * nifti_float(file, 88)};
  const double rotation[9] = {a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c),
                              2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b),
                              2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) affine[4 * row + column] = rotation[3 * row + column] * size[column];
    affine[4 * row + 3] = nifti_float(file, 268 + 4 * (size_t)row);
  }
  return 1;
}

/* Read a file; NULL, or what is wrong with it. `free((void *)file->image.voxels)` gives its voxels back. */
static const char *nifti_read(const char *path, nifti *file) {
  static const struct {
    int16_t code;
    mednext_dtype dtype;
    size_t bytes;
  } types[] = {{2, MEDNEXT_UINT8, 1}, {4, MEDNEXT_INT16, 2},   {512, MEDNEXT_UINT16, 2},
               {8, MEDNEXT_INT32, 4}, {16, MEDNEXT_FLOAT32, 4}, {64, MEDNEXT_FLOAT64, 8}};
  const mednext_image empty = MEDNEXT_IMAGE_INIT;
  file->image = empty;
  FILE *in = fopen(path, "rb");
  if (!in) return "cannot be opened";
  const char *problem = NULL;
  size_t bytes = 0, count = 1;
  if (fread(file->header, 1, NIFTI_HEADER, in) != NIFTI_HEADER || memcmp(file->header + 344, "n+1", 4) != 0)
    problem = "is no uncompressed NIfTI-1 file (.nii)";
  for (size_t i = 0; !problem && i < sizeof types / sizeof *types; ++i)
    if (types[i].code == nifti_short(file, 70)) file->image.dtype = types[i].dtype, bytes = types[i].bytes;
  if (!problem && !bytes) problem = "holds voxels of a type that is not read here";
  for (int axis = 0; !problem && axis < 3; ++axis) { /* dim[1..3] are x, y, z */
    const int16_t size = axis < nifti_short(file, 40) ? nifti_short(file, 42 + 2 * (size_t)axis) : 1;
    if (size < 1) problem = "has no voxels";
    file->image.shape[2 - axis] = size;
    count *= (size_t)size;
  }
  if (!problem && nifti_short(file, 40) > 3 && nifti_short(file, 48) > 1) problem = "has more than three axes";
  if (!problem && !nifti_affine(file, file->image.affine)) problem = "has neither sform nor qform";
  const float slope = nifti_float(file, 112), inter = nifti_float(file, 116), offset = nifti_float(file, 108);
  void *voxels = NULL;
  if (!problem && (!(offset >= NIFTI_HEADER && offset < 1e9f) || fseek(in, (long)offset, SEEK_SET) != 0 ||
                   !(voxels = malloc(count * bytes)) || fread(voxels, bytes, count, in) != count))
    problem = "ends before its last voxel";
  fclose(in);
  if (!problem && slope != 0 && isfinite(slope) && (slope != 1 || inter != 0)) {
    float *scaled = file->image.dtype == MEDNEXT_INT16 ? (float *)malloc(count * sizeof *scaled) : NULL;
    for (size_t i = 0; scaled && i < count; ++i)
      scaled[i] = (float)((double)((const int16_t *)voxels)[i] * (double)slope + (double)inter);
    if (!scaled) problem = "is scaled, which is read here for 16-bit integers only";
    free(voxels);
    voxels = scaled;
    file->image.dtype = MEDNEXT_FLOAT32;
  }
  if (problem) {
    free(voxels);
    voxels = NULL;
  }
  file->image.voxels = voxels;
  return problem;
}

/* Write labels on the grid of `like`, to a temporary name first; 0 where that did not work. */
static int nifti_write_labels(const char *path, const nifti *like, const uint16_t *labels) {
  unsigned char header[NIFTI_HEADER];
  memcpy(header, like->header, sizeof header);
  const int16_t uint16_code = 512, bits = 16;
  const float slope = 1, zero = 0, offset = NIFTI_HEADER;
  memcpy(header + 70, &uint16_code, 2), memcpy(header + 72, &bits, 2), memcpy(header + 108, &offset, 4);
  memcpy(header + 112, &slope, 4), memcpy(header + 116, &zero, 4); /* scl_slope, scl_inter */
  memcpy(header + 124, &zero, 4), memcpy(header + 128, &zero, 4);  /* cal_max, cal_min */
  memset(header + 348, 0, 4);                                      /* no extension */
  const int64_t *shape = like->image.shape;
  const size_t count = (size_t)(shape[0] * shape[1] * shape[2]), length = strlen(path) + 5;
  char *temporary = (char *)malloc(length);
  if (!temporary) return 0;
  snprintf(temporary, length, "%s.tmp", path);
  FILE *out = fopen(temporary, "wb");
  int good = out && fwrite(header, 1, sizeof header, out) == sizeof header && fwrite(labels, 2, count, out) == count;
  if (out && fclose(out) != 0) good = 0;
  good = good && rename(temporary, path) == 0;
  if (!good) remove(temporary);
  free(temporary);
  return good;
}

#endif
