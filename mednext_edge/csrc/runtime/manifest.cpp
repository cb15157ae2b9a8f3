#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.h"
#include "json.h"

namespace mednext {
namespace {

constexpr int64_t kSchema = 1;
constexpr size_t kMostFiles = 4096, kMostClasses = 65535, kMostChannels = 1024;
constexpr int64_t kLongestPatch = 4096, kLargestPatch = int64_t{1} << 30;

int one_of(const Field& field, std::initializer_list<const char*> names) {
  int index = 0;
  std::string all;
  for (const char* name : names) {
    if (field.text() == name) return index;
    all += (index++ ? ", " : "") + std::string(name);
  }
  field.wrong("one of " + all);
}

Normalization normalization(const Field& field) {
  field.only({"scheme", "masked", "mean", "sd", "lower", "upper"});
  Normalization entry;
  entry.scheme = static_cast<Scheme>(one_of(field["scheme"], {"zscore", "ct", "rescale", "none"}));
  entry.masked = field["masked"].flag();
  entry.mean = field["mean"].number();
  entry.sd = field["sd"].number();
  entry.lower = field["lower"].number(true);
  entry.upper = field["upper"].number(true);
  if (!(entry.sd > 0)) field["sd"].wrong("a number above 0");
  return entry;
}

Preprocessing preprocessing(const Field& field) {
  field.only({"colour", "orientation", "transpose", "crop_nonzero", "normalization", "normalize_after_resampling",
              "spacing", "size", "image_order", "label_order", "anisotropy_threshold"});
  Preprocessing recipe;
  if (const auto colour = field.find("colour"); colour && !colour->is_null())
    recipe.colour = static_cast<Colour>(one_of(*colour, {"RGB", "BGR", "grey"}));
  if (const Field codes = field["orientation"]; !codes.is_null()) {
    const std::string& text = codes.text();
    std::array<int, 3> count{};
    for (const char c : text)
      for (int axis = 0; axis < 3; ++axis) count[axis] += std::string_view("RLAPSI").substr(2 * axis, 2).find(c) < 2;
    if (text.size() != 3 || count != std::array<int, 3>{1, 1, 1}) codes.wrong("axis codes such as RAS");
    recipe.orientation = text;
  }
  const Field transpose = field["transpose"];
  std::array<int, 3> seen{};
  const auto axes = transpose.list(3);
  for (size_t i = 0; i < axes.size(); ++i) ++seen[recipe.transpose[i] = static_cast<int>(axes[i].integer(0, 2))];
  if (seen != std::array<int, 3>{1, 1, 1}) transpose.wrong("a permutation of 0, 1, 2");
  recipe.crop_nonzero = field["crop_nonzero"].flag();
  for (const Field& entry : field["normalization"].list(kMostChannels))
    recipe.normalization.push_back(normalization(entry));
  if (recipe.colour && recipe.normalization.size() != (*recipe.colour == Colour::grey ? 1 : 3))
    field["normalization"].wrong("three for photographs, or one for grey ones");
  recipe.normalize_after_resampling = field["normalize_after_resampling"].flag();
  if (const Field spacing = field["spacing"]; !spacing.is_null()) {
    for (const Field& size : spacing.list(3)) recipe.spacing.push_back(size.number());
    const bool positive = std::all_of(recipe.spacing.begin(), recipe.spacing.end(), [](double s) { return s > 0; });
    if (recipe.spacing.size() < 2 || !positive) spacing.wrong("two or three voxel sizes above 0");
  }
  if (const auto size = field.find("size"); size && !size->is_null()) {
    for (const Field& pixels : size->list(2)) recipe.size.push_back(pixels.integer(1, kLongestPatch));
    if (recipe.size.size() != 2 || !recipe.spacing.empty()) size->wrong("two sizes, and then no spacing");
  }
  recipe.image_order = static_cast<int>(field["image_order"].integer(0, 5));
  field["label_order"].integer(0, 5);
  recipe.anisotropy_threshold = field["anisotropy_threshold"].number();
  if (recipe.anisotropy_threshold < 1) field["anisotropy_threshold"].wrong("a number of at least 1");
  return recipe;
}

Shape patch(const Field& field, int dims) {
  const auto sizes = field.list(3);
  if (static_cast<int>(sizes.size()) != dims) field.wrong(std::to_string(dims) + " sizes");
  Shape shape{1, 1, 1};
  int64_t voxels = 1;
  for (int i = 0; i < dims; ++i) voxels *= shape[3 - dims + i] = sizes[i].integer(1, kLongestPatch);
  if (voxels > kLargestPatch) field.wrong("at most " + std::to_string(kLargestPatch) + " voxels");
  return shape;
}

void inference(const Field& field, Manifest& manifest) {
  field.only({"patch", "step", "mirror_axes", "average"});
  patch(field["patch"], manifest.spatial_dims);
  manifest.step = field["step"].number();
  if (!(manifest.step > 0 && manifest.step <= 1)) field["step"].wrong("a fraction of the patch, above 0 and up to 1");
  std::set<int> seen;
  for (const Field& axis : field["mirror_axes"].list(3)) {
    manifest.mirror_axes.push_back(3 - manifest.spatial_dims +
                                   static_cast<int>(axis.integer(0, manifest.spatial_dims - 1)));
    if (!seen.insert(manifest.mirror_axes.back()).second) axis.wrong("each axis once");
  }
  manifest.average_logits = one_of(field["average"], {"softmax", "logits"}) == 1;
}

// `dims`: spatial axes; none are in the answer of a classification.
void check_tensor(const Field& field, int64_t channels, int dims) {
  if (field["dtype"].text() != "float32") field["dtype"].wrong("float32");
  const char* layout = dims == 3 ? "NCDHW" : dims == 2 ? "NCHW" : "NC";
  if (field["layout"].text() != layout) field["layout"].wrong(layout);
  const auto shape = field["shape"].list(5);
  if (static_cast<int>(shape.size()) != dims + 2) field["shape"].wrong(std::to_string(dims + 2) + " sizes");
  if (!shape[1].is_null() && shape[1].integer(1, kMostClasses) != channels)
    shape[1].wrong(std::to_string(channels) + " channels");
}

// Names by value, which number the classes from 0.
std::vector<std::string> labels(const Field& field, int64_t classes) {
  std::vector<std::string> names(classes);
  std::vector<bool> seen(classes);
  const std::string expected = std::to_string(classes) + " labels that number the classes from 0";
  if (field.value().kind != Json::Kind::object || static_cast<int64_t>(field.value().object.size()) != classes)
    field.wrong(expected);
  for (const auto& [name, value] : field.value().object) {
    const int64_t number = Field(value, field.place() + "." + name).integer(0, classes - 1);
    if (seen[number]) field.wrong(expected);
    seen[number] = true;
    names[number] = name;
  }
  return names;
}

// How a label map comes about: each region leaves the value of the label with its name.
std::vector<Paint> paints(const Field& field, const Manifest& manifest) {
  std::vector<Paint> found;
  std::set<int64_t> values, outputs;
  for (const Field& region : field.list(kMostClasses)) {
    region.only({"name", "values", "output"});
    const auto label = std::find(manifest.labels.begin() + 1, manifest.labels.end(), region["name"].text());
    if (label == manifest.labels.end()) region["name"].wrong("the name of a label but the background's");
    const auto value = static_cast<uint16_t>(label - manifest.labels.begin());
    if (!values.insert(value).second) region["name"].wrong("each label once");
    std::set<int64_t> inside;
    for (const Field& of : region["values"].list(kMostClasses)) inside.insert(of.integer(1, manifest.classes() - 1));
    if (!inside.count(value)) region["values"].wrong("the value of its own label among them");
    const auto stated = region.find("output");
    const bool placed = stated && !stated->is_null();
    const int64_t output =
        placed ? stated->integer(0, manifest.outputs - 1) : static_cast<int64_t>(found.size());
    if (!outputs.insert(output).second) region.wrong("each output once");
    found.push_back({output, value});
  }
  if (manifest.classifies || !manifest.average_logits) field.wrong("none but for segmentations that average logits");
  return found;
}

std::string optional_text(const Field& owner, const char* key) {
  const auto field = owner.find(key);
  return field && !field->is_null() ? field->text() : "";
}

Manifest::Engine engine(const Field& field) {
  field.only({"file", "provider", "provider_version", "arch", "status", "plans"});
  Manifest::Engine engine;
  engine.file = field["file"].text();
  engine.provider = field["provider"].text();
  engine.provider_version = field["provider_version"].text();
  engine.arch = optional_text(field, "arch");
  engine.deferred = one_of(field["status"], {"built", "deferred"}) == 1;
  if (const auto plans = field.find("plans"))
    for (const Field& plan : plans->list(kMostFiles)) {
      plan.only({"arch", "file"});
      engine.plans.push_back({plan["arch"].text(), plan["file"].text()});
    }
  return engine;
}

std::vector<Manifest::File> files(const Field& field) {
  std::vector<Manifest::File> found;
  std::set<std::string> seen;
  for (const Field& entry : field.list(kMostFiles)) {
    entry.only({"path", "sha256", "size"});
    Manifest::File file{entry["path"].text(), entry["sha256"].text(),
                        static_cast<uint64_t>(entry["size"].integer(0, INT64_MAX))};
    const bool hex = file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!is_inside(file.path)) entry["path"].wrong("a plain path inside the bundle");
    if (file.sha256.size() != 64 || !hex) entry["sha256"].wrong("64 lower-case hex digits");
    if (file.path == "manifest.json" || file.path == "manifest.sha256" || !seen.insert(file.path).second)
      entry["path"].wrong("each file once, without the manifest itself");
    found.push_back(std::move(file));
  }
  return found;
}

// Parts that a device has no use for; checked all the same, so that what Python refuses is refused here.
void check_rest(const Field& field) {
  const Field model = field["model"], source = field["source"];
  model["family"].text();
  model["variant"].text();
  model["kernel_size"].integer(INT64_MIN, INT64_MAX);
  model["parameters"].integer(0, INT64_MAX);
  if (model["config"].value().kind != Json::Kind::object) model["config"].wrong("an object");
  source.only({"format", "file", "sha256"});
  for (const char* key : {"format", "file", "sha256"}) source[key].text();
  field["input"].only({"shape", "dtype", "layout", "patch"});
  field["output"].only({"shape", "dtype", "layout"});
  if (const auto rewrites = field.find("rewrites"))
    for (const Field& rewrite : rewrites->list(kMostFiles)) rewrite.text();
  for (const char* key : {"tool_version", "created"})
    if (const auto text = field.find(key)) text->text();
  if (const auto gate = field.find("gate")) {
    gate->only({"status", "metric", "max_drop", "drop"});
    if (const auto status = gate->find("status")) one_of(*status, {"passed", "failed", "not_run"});
    optional_text(*gate, "metric");
    for (const char* key : {"max_drop", "drop"})
      if (const auto drop = gate->find(key); drop && !drop->is_null()) drop->number(true);
  }
}

Manifest read(const Field& field) {
  if (const auto schema = field.find("schema"); !schema || schema->value().kind != Json::Kind::number ||
                                                !schema->value().integral || schema->value().integer != kSchema)
    fail(MEDNEXT_E_INTEGRITY, "the manifest does not have schema ", kSchema,
         ", the one that this version reads; use the library of the mednext-edge that wrote it, or export again");
  field.only({"schema", "name", "model", "source", "input", "output", "preprocessing", "inference", "labels", "regions",
              "target", "precision", "engine", "rewrites", "gate", "files", "tool_version", "created"});
  Manifest manifest;
  manifest.name = field["name"].text();
  manifest.target = field["target"].text();
  manifest.precision = field["precision"].text();
  manifest.created = optional_text(field, "created");
  const Field model = field["model"];
  if (const auto kind = model.find("kind"))
    manifest.classifies = one_of(*kind, {"segmentation", "classification"}) == 1;
  model.only({"kind", "family", "variant", "kernel_size", "spatial_dims", "in_channels", "classes", "parameters",
              "config"});
  manifest.spatial_dims = static_cast<int>(model["spatial_dims"].integer(2, 3));
  manifest.channels = model["in_channels"].integer(1, kMostChannels);
  manifest.outputs = model["classes"].integer(1, kMostClasses);
  manifest.preprocessing = preprocessing(field["preprocessing"]);
  if (static_cast<int64_t>(manifest.preprocessing.normalization.size()) != manifest.channels)
    field["preprocessing"].wrong(std::to_string(manifest.channels) + " normalisations, one a channel");
  if (!manifest.preprocessing.size.empty() && manifest.spatial_dims != 2)
    field["preprocessing"]["size"].wrong("none for a 3-D network");
  inference(field["inference"], manifest);
  const auto regions = field.find("regions");
  const bool by_region = regions && !regions->list(kMostClasses).empty();
  if (by_region && static_cast<int64_t>(regions->list(kMostClasses).size()) != manifest.outputs)
    regions->wrong(std::to_string(manifest.outputs) + ", one an output");
  manifest.labels = labels(field["labels"], by_region ? manifest.outputs + 1 : std::max<int64_t>(2, manifest.outputs));
  if (by_region) manifest.paints = paints(*regions, manifest);
  check_tensor(field["input"], manifest.channels, manifest.spatial_dims);
  check_tensor(field["output"], manifest.outputs, manifest.classifies ? 0 : manifest.spatial_dims);
  manifest.patch = patch(field["input"]["patch"], manifest.spatial_dims);
  check_rest(field);
  manifest.engine = engine(field["engine"]);
  manifest.files = files(field["files"]);
  std::vector<std::string> engines{manifest.engine.file};
  for (const auto& plan : manifest.engine.plans) engines.push_back(plan.file);
  for (const std::string& name : engines) {
    const auto same = [&](const Manifest::File& file) { return file.path == name; };
    if (std::none_of(manifest.files.begin(), manifest.files.end(), same))
      field["engine"]["file"].wrong("one of the listed files, found " + name);
  }
  return manifest;
}

}  // namespace

bool is_inside(std::string_view path) {
  if (path.empty() || path.front() == '/' || path.back() == '/') return false;
  const auto odd = [](unsigned char c) { return c < 32 || std::string_view("\\:<>|?*\"").find(c) < 8; };
  if (std::any_of(path.begin(), path.end(), odd)) return false;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string_view part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

Manifest Manifest::parse(std::string_view json) {
  try {
    const Json document = Json::parse(json);
    return read(Field(document, ""));
  } catch (const std::invalid_argument& error) {
    fail(MEDNEXT_E_INTEGRITY, "manifest.json is not a valid manifest: ", error.what(), "; export again");
  }
}

}  // namespace mednext
