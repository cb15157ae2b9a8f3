/* scanner BUNDLE IMAGE.nii LABELS.nii [--mirror]: one volume through a bundle, in C, without Python.
 *
 * Research software, not a medical device: not for diagnosis or treatment.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "mednext_edge.h"
#include "nifti.h"

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int show_progress(int64_t done, int64_t total, void *user) {
  (void)user;
  fprintf(stderr, "\r%lld of %lld patches%s", (long long)done, (long long)total, done == total ? "\n" : "");
  return 0; /* anything else cancels */
}

int main(int argc, char **argv) {
  if (argc < 4 || (argc == 5 && strcmp(argv[4], "--mirror") != 0) || argc > 5) {
    fprintf(stderr, "usage: %s BUNDLE IMAGE.nii LABELS.nii [--mirror]\n", argv[0]);
    return 2;
  }
  nifti file;
  const char *problem = nifti_read(argv[2], &file);
  if (problem) {
    fprintf(stderr, "%s %s\n", argv[2], problem);
    return 1;
  }
  mednext_model *model = NULL;
  mednext_info info = MEDNEXT_INFO_INIT;
  mednext_segment_options options = MEDNEXT_SEGMENT_OPTIONS_INIT;
  options.mirror = argc == 5;
  options.progress = show_progress;
  const int64_t *shape = file.image.shape;
  const size_t count = (size_t)(shape[0] * shape[1] * shape[2]);
  uint16_t *labels = malloc(count * sizeof *labels);
  int failed = 1;
  const double start = seconds();
  double opened = start;
  if (labels && mednext_open(argv[1], NULL, &model) == MEDNEXT_OK && mednext_describe(model, &info) == MEDNEXT_OK) {
    opened = seconds();
    failed = mednext_segment(model, &file.image, &options, labels, count) != MEDNEXT_OK;
  }
  const double done = seconds();
  if (failed) {
    fprintf(stderr, "%s\n", mednext_last_error());
  } else {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    fprintf(stderr, "%s (%s, %s): opened in %.2f s, segmented in %.2f s, peak memory %ld MB\n", info.name,
            info.precision, info.provider, opened - start, done - opened, usage.ru_maxrss / 1024);
    failed = !nifti_write_labels(argv[3], &file, labels);
    if (failed) fprintf(stderr, "%s cannot be written\n", argv[3]);
  }
  mednext_close(model); /* answers MEDNEXT_E_CLOSED where nothing was opened */
  free(labels);
  free((void *)file.image.voxels);
  return failed;
}
