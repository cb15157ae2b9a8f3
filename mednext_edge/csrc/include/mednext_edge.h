/* libmednext_edge: from voxels and their affine to labels, or from an image to its class, in a process without Python.
 *
 *   mednext_model *model = NULL;
 *   if (mednext_open("hippocampus.openvino-int8", NULL, &model) != MEDNEXT_OK) puts(mednext_last_error());
 *   mednext_segment(model, &image, NULL, labels, voxels);
 *   mednext_close(model);
 *
 * Research software, not a medical device: not for diagnosis or treatment.
 *
 * Rules that hold for every function:
 * - It returns MEDNEXT_OK or an error; `mednext_last_error` then says, in the same thread, what was found, what was
 *   expected and what to do. No exception crosses this border, and nothing is printed.
 * - Handles are tokens that are never dereferenced and never used twice. A call with NULL, or after the handle was
 *   closed, answers MEDNEXT_E_CLOSED; closing twice does too. Neither is undefined.
 * - Every function may be called from any thread at any time. Calls that compute on one handle wait for each other;
 *   two handles on one bundle compute at the same time, each with its own engine and memory.
 * - Closing a handle that computes cancels the computation, which ends with MEDNEXT_E_CANCELLED; its memory goes when
 *   it has ended.
 * - Structures begin with their size, so that a later version may add fields at their end:
 *   `mednext_options options = MEDNEXT_OPTIONS_INIT;`.
 */
#ifndef MEDNEXT_EDGE_H
#define MEDNEXT_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(MEDNEXT_EDGE_BUILD)
#define MEDNEXT_EDGE_API __declspec(dllexport)
#elif defined(_WIN32)
#define MEDNEXT_EDGE_API __declspec(dllimport)
#else
#define MEDNEXT_EDGE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mednext_status {
  MEDNEXT_OK = 0,
  MEDNEXT_E_ARGUMENT = 1,  /* a NULL, an option out of range, a buffer of another size than stated, a call that this
                            * bundle does not answer */
  MEDNEXT_E_CLOSED = 2,    /* no such handle, or one that was closed */
  MEDNEXT_E_BUNDLE = 3,    /* the path is no bundle */
  MEDNEXT_E_INTEGRITY = 4, /* the bundle's manifest or digests do not hold; its engine was not opened */
  MEDNEXT_E_BACKEND = 5,   /* the engine's library or device is not here, or refuses the engine */
  MEDNEXT_E_DATA = 6,      /* the image does not fit: channels, NaN, affine, size */
  MEDNEXT_E_ENGINE = 7,    /* the engine failed, or returned NaN or infinite values */
  MEDNEXT_E_MEMORY = 8,    /* not enough memory; the handle stays usable */
  MEDNEXT_E_CANCELLED = 9, /* by mednext_cancel, the callback, or closing */
  MEDNEXT_E_INTERNAL = 10  /* a fault of this library */
} mednext_status;

typedef enum mednext_dtype {
  MEDNEXT_UINT8 = 0,
  MEDNEXT_INT16 = 1,
  MEDNEXT_UINT16 = 2,
  MEDNEXT_INT32 = 3,
  MEDNEXT_FLOAT32 = 4,
  MEDNEXT_FLOAT64 = 5
} mednext_dtype;

typedef enum mednext_kind {
  MEDNEXT_SEGMENTATION = 0,  /* labels of every voxel: mednext_segment, streams */
  MEDNEXT_CLASSIFICATION = 1 /* probabilities of a whole image: mednext_classify */
} mednext_kind;

typedef struct mednext_model mednext_model;
typedef struct mednext_stream mednext_stream;

/* Where and how the engine runs. */
typedef struct mednext_options {
  size_t size;        /* of this structure */
  const char *device; /* in the engine's own terms, such as "CPU" or "GPU"; NULL: the engine's usual one */
  int32_t threads;    /* CPU threads; 0: the engine chooses */
} mednext_options;
#define MEDNEXT_OPTIONS_INIT {sizeof(mednext_options), NULL, 0}

/* Called in the computing thread after every patch. Anything but 0 cancels. It may call any function of this header
 * but those that compute on the same handle (MEDNEXT_E_ARGUMENT). */
typedef int (*mednext_progress)(int64_t done, int64_t total, void *user);

/* How one image is segmented or classified. */
typedef struct mednext_segment_options {
  size_t size;
  double step;               /* distance of the patches as a fraction of their size, 0 < step <= 1; 0: the bundle's */
  int32_t mirror;            /* 1: also every combination of flips along the bundle's mirror axes, averaged */
  mednext_progress progress; /* NULL: none */
  void *user;                /* handed to `progress` */
} mednext_segment_options;
#define MEDNEXT_SEGMENT_OPTIONS_INIT {sizeof(mednext_segment_options), 0.0, 0, NULL, NULL}

/* An image in the caller's memory, read only, not kept after the call. A photograph (see mednext_info.colour) is one
 * slice of 0 to 255, grey or red, green and blue, channel after channel; its affine may stay that of the _INIT. Frames of
 * a film are slices of one image. */
typedef struct mednext_image {
  size_t size;
  const void *voxels;  /* [channels][shape[0]][shape[1]][shape[2]], without gaps */
  mednext_dtype dtype; /* of `voxels` */
  int64_t channels;    /* as many as the network takes; 1 or 3 of a photograph */
  int64_t shape[3];    /* (z, y, x), x the axis whose voxels are neighbours in memory */
  double affine[16];   /* row by row: (x, y, z, 1) voxel indices -> RAS millimetres, as in NIfTI (not DICOM's LPS) */
} mednext_image;
#define MEDNEXT_IMAGE_INIT \
  {sizeof(mednext_image), NULL, MEDNEXT_FLOAT32, 1, {0, 0, 0}, {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}}

/* What a bundle is for. Texts end with 0 and are cut where they are longer. */
typedef struct mednext_info {
  size_t size;
  char name[128];
  char target[16];     /* native, openvino, trt, trt-rtx */
  char precision[16];  /* fp32, fp16, bf16, int8 */
  char provider[64];   /* name and version of the engine that runs it here */
  char created[40];    /* ISO 8601 */
  int32_t channels;    /* of the network's input */
  int32_t classes;     /* labels are 0..classes-1; in a segmentation 0 is the background */
  int32_t spatial_dims; /* 2: the network takes slices */
  int32_t needs_whole_volume; /* 1: a stream can run no patch before its last slice; 0: it depends on the spacing */
  int64_t patch[3];    /* (z, y, x); z is 1 for slices */
  double step;
  int32_t mirror_axes; /* how many axes test-time mirroring flips */
  mednext_kind kind;   /* which call it answers */
  char colour[8];      /* RGB, BGR or grey: takes photographs, and turns their channels into these; else empty */
} mednext_info;
#define MEDNEXT_INFO_INIT \
  {sizeof(mednext_info), "", "", "", "", "", 0, 0, 0, 0, {0, 0, 0}, 0.0, 0, MEDNEXT_SEGMENTATION, ""}

/* How the slices of a stream were used. */
typedef struct mednext_stream_info {
  size_t size;
  int64_t slices;         /* arrived so far */
  int64_t patches;        /* in all; 0 before it is known */
  int64_t patches_done;
  int64_t patches_early;  /* of these, run before the last slice arrived */
  int64_t patches_undone; /* run early for a guess that the last slices did not bear out, and run again */
  char reason[160];       /* why no patch can run early; empty when it can */
} mednext_stream_info;
#define MEDNEXT_STREAM_INFO_INIT {sizeof(mednext_stream_info), 0, 0, 0, 0, 0, ""}

/* Version of this library, such as "0.1.0". */
MEDNEXT_EDGE_API const char *mednext_version(void);

/* What the last failing call of this thread has to say; "" if none failed. Valid until the next call in this thread. */
MEDNEXT_EDGE_API const char *mednext_last_error(void);

/* Open a bundle: schema, then digests of all its files, then the engine. Nothing in the folder is read after that: it
 * may be replaced while the handle is open.
 *
 * path: the folder that mednext-export wrote, UTF-8. options: NULL for the defaults. model: the new handle; NULL after
 * an error. Errors: ARGUMENT, BUNDLE, INTEGRITY, BACKEND, MEMORY. */
MEDNEXT_EDGE_API mednext_status mednext_open(const char *path, const mednext_options *options, mednext_model **model);

/* Fill `info`. Does not wait for a computation. */
MEDNEXT_EDGE_API mednext_status mednext_describe(mednext_model *model, mednext_info *info);

/* Name of the label `value`, at most `capacity` bytes with the closing 0. */
MEDNEXT_EDGE_API mednext_status mednext_label_name(mednext_model *model, int32_t value, char *name, size_t capacity);

/* Labels of an image, on the image's own grid.
 *
 * The whole way of mednext_edge.predict: orientation, cropping, normalisation, resampling, sliding window with Gaussian
 * weights, mirroring, best class or last region, and all the way back. labels: [z][y][x], of no use after an error.
 * count: voxels that `labels` has room for, exactly those of the image.
 * Errors: ARGUMENT, CLOSED, DATA, ENGINE, MEMORY, CANCELLED. */
MEDNEXT_EDGE_API mednext_status mednext_segment(mednext_model *model, const mednext_image *image,
                                                const mednext_segment_options *options, uint16_t *labels,
                                                size_t count);

/* Probabilities of the classes of a whole image; of a stack of slices or an image larger than the patch their mean.
 *
 * probabilities: one for each class, adding up to 1; mednext_label_name names them. count: as many as mednext_info has
 * classes. Errors: those of mednext_segment. */
MEDNEXT_EDGE_API mednext_status mednext_classify(mednext_model *model, const mednext_image *image,
                                                 const mednext_segment_options *options, float *probabilities,
                                                 size_t count);

/* End all computations on this handle that have begun, waiting ones too, after the patch in work. Later calls are not
 * affected. Returns at once. */
MEDNEXT_EDGE_API mednext_status mednext_cancel(mednext_model *model);

/* Give the handle back, and the engine with it once nothing computes on it any more. */
MEDNEXT_EDGE_API mednext_status mednext_close(mednext_model *model);

/* Slices as they arrive, in any order: each patch runs, in a thread of the stream, as soon as its slices are there.
 *
 * That needs a bundle whose preprocessing looks at no more than single voxels (CT windows, or none): z-score and
 * rescaling need the whole volume, and so does resampling across the slices, unless the slice axis is coarse enough to
 * be resampled apart. For such bundles slices are checked and turned as they arrive, the patches run in
 * mednext_stream_finish, and mednext_stream_describe says why. Labels are those of mednext_segment, but for the
 * rounding of sums taken in another order.
 *
 * header: dtype, channels, full shape and affine; `voxels` is not read. Slices are indices of the first spatial axis.
 * The progress callback is called in the stream's thread. Errors: ARGUMENT, CLOSED, DATA, MEMORY. */
MEDNEXT_EDGE_API mednext_status mednext_stream_open(mednext_model *model, const mednext_image *header,
                                                    const mednext_segment_options *options, mednext_stream **stream);

/* Hand over `count` slices from index `first` on: [channels][count][shape[1]][shape[2]] of the header's dtype. They are
 * copied, and the call does not wait for the engine. Errors: ARGUMENT (out of range, or a slice that came before),
 * CLOSED, DATA (NaN); and those of patches that have failed meanwhile: ENGINE, MEMORY, CANCELLED. */
MEDNEXT_EDGE_API mednext_status mednext_stream_push(mednext_stream *stream, int64_t first, int64_t count,
                                                    const void *voxels);

/* Fill `info`. Does not wait. */
MEDNEXT_EDGE_API mednext_status mednext_stream_describe(mednext_stream *stream, mednext_stream_info *info);

/* Run what is left and write the labels, as mednext_segment does. Errors: its errors, and DATA for missing slices
 * (the stream then stays open for them). */
MEDNEXT_EDGE_API mednext_status mednext_stream_finish(mednext_stream *stream, uint16_t *labels, size_t count);

/* Give the stream back, finished or not; a finish that waits in another thread ends with MEDNEXT_E_CANCELLED. Waits for
 * the patch in work. */
MEDNEXT_EDGE_API mednext_status mednext_stream_close(mednext_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
