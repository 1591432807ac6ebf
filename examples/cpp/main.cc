// Runs the ONNX programs of a bundle on its samples, without Python: run_bundle BUNDLE
//
// BUNDLE is a folder of convoy export --format=onnx. Each output is printed with its largest difference from the
// samples. The exit code is 0 if all are within the tolerance of the bundle. Hashes are not compared: check.py does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

struct Array {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};
using Arrays = std::map<std::string, Array>;

// Types that this program knows: their names in safetensors and in bundle.json, and their bytes.
struct Type {
  const char *stored, *name;
  ONNXTensorElementDataType onnx;
  size_t bytes;
};
const Type kTypes[] = {
    {"BOOL", "bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
    {"U8", "uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"I8", "int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
    {"I32", "int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"I64", "int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"F16", "float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"F32", "float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"F64", "float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
};

const Type& TypeOf(ONNXTensorElementDataType onnx, const std::string& stored = "") {
  for (const Type& type : kTypes) {
    if (type.onnx == onnx || type.stored == stored) return type;
  }
  throw std::runtime_error("an array has a type that this program does not know");
}

std::vector<char> Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Returns the arrays of a safetensors file: the length of a header, the header in JSON, and the values.
Arrays ReadArrays(const std::string& path) {
  const std::vector<char> data = Read(path);
  uint64_t size = 0;
  std::memcpy(&size, data.data(), std::min(sizeof(size), data.size()));  // little-endian, as the processor is
  if (data.size() < sizeof(size) || size > data.size() - sizeof(size)) throw std::runtime_error(path + ": was cut");
  const auto values = data.begin() + sizeof(size) + size;
  const json header = json::parse(data.begin() + sizeof(size), values);
  Arrays found;
  for (const auto& [name, spec] : header.items()) {
    if (name == "__metadata__") continue;
    const uint64_t start = spec["data_offsets"][0], end = spec["data_offsets"][1];
    if (start > end || end > static_cast<uint64_t>(data.end() - values)) throw std::runtime_error(path + ": was cut");
    const Type& type = TypeOf(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, spec["dtype"]);
    found[name] = {type.onnx, spec["shape"], {values + start, values + end}};
  }
  return found;
}

struct Half {
  uint16_t bits;
  operator double() const { return Ort::Float16_t::FromBits(bits).ToFloat(); }
};

template <typename T>
std::vector<double> Converted(const Array& array) {
  std::vector<T> typed(array.bytes.size() / sizeof(T));
  std::memcpy(typed.data(), array.bytes.data(), array.bytes.size());
  return {typed.begin(), typed.end()};
}

std::vector<double> Numbers(const Array& array) {
  switch (array.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return Converted<float>(array);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return Converted<double>(array);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return Converted<Half>(array);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return Converted<int32_t>(array);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return Converted<int64_t>(array);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return Converted<int8_t>(array);
    default: return Converted<uint8_t>(array);
  }
}

Arrays Run(Ort::Session& session, Arrays inputs, const std::vector<std::string>& outputs) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (auto& [name, x] : inputs) {
    input_names.push_back(name.c_str());
    values.push_back(
        Ort::Value::CreateTensor(memory, x.bytes.data(), x.bytes.size(), x.shape.data(), x.shape.size(), x.type));
  }
  // In ONNX an output must not have the name of an input, as the next state does in bundle.json.
  std::vector<std::string> unique;
  for (const auto& name : outputs) unique.push_back(inputs.count(name) ? "next/" + name : name);
  for (const auto& name : unique) output_names.push_back(name.c_str());
  const auto results = session.Run(Ort::RunOptions(), input_names.data(), values.data(), values.size(),
                                   output_names.data(), output_names.size());
  Arrays found;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto info = results[i].GetTensorTypeAndShapeInfo();
    const char* start = static_cast<const char*>(results[i].GetTensorRawData());
    const size_t size = info.GetElementCount() * TypeOf(info.GetElementType()).bytes;
    found[outputs[i]] = {info.GetElementType(), info.GetShape(), {start, start + size}};
  }
  return found;
}

// Runs a program on the samples. A model with memory gets one frame after the other, each with the state that the call
// before it returned; its outputs have the frames as their first dimension.
Arrays RunSamples(Ort::Session& session, const json& entry, const Arrays& samples) {
  std::vector<std::string> outputs, state = entry["state"];
  for (const auto& [name, spec] : entry["outputs"].items()) outputs.push_back(name);
  Arrays inputs, found;
  for (const auto& [name, spec] : entry["inputs"].items()) inputs[name] = samples.at("inputs/" + name);
  if (state.empty()) return Run(session, inputs, outputs);
  Arrays frames = inputs;
  for (const auto& name : state) frames.erase(name);
  const int64_t count = frames.begin()->second.shape.at(0);
  for (int64_t frame = 0; frame < count; ++frame) {
    for (const auto& [name, x] : frames) {
      const size_t size = x.bytes.size() / count;
      const auto start = x.bytes.begin() + frame * size;
      inputs[name] = {x.type, {x.shape.begin() + 1, x.shape.end()}, {start, start + size}};
    }
    for (auto& [name, x] : Run(session, inputs, outputs)) {
      if (std::count(state.begin(), state.end(), name)) inputs[name] = x;
      if (frame == 0) found[name] = {x.type, x.shape, {}}, found[name].shape.insert(found[name].shape.begin(), count);
      found[name].bytes.insert(found[name].bytes.end(), x.bytes.begin(), x.bytes.end());
    }
  }
  return found;
}

// Returns the largest difference relative to max(1, largest expected value); infinite for integers that differ.
double Difference(const Array& found, const Array& expected) {
  if (found.type != expected.type || found.shape != expected.shape) return INFINITY;
  const bool is_float = TypeOf(found.type).name[0] == 'f';
  const auto x = Numbers(found), y = Numbers(expected);
  double largest = 0, scale = 1;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isfinite(y[i])) scale = std::max(scale, std::abs(y[i]));
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    const double difference = is_float ? std::abs(x[i] - y[i]) : INFINITY;
    largest = std::max(largest, std::isfinite(difference) ? difference : INFINITY);
  }
  return largest / scale;
}

// Prints an output as one line.
void Print(const std::string& entry, const std::string& name, const Array& array) {
  std::string shape;
  for (int64_t size : array.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
  std::printf("%s %s %s[%s]:", entry.c_str(), name.c_str(), TypeOf(array.type).name, shape.c_str());
  for (double one : Numbers(array)) std::printf(" %.9g", one);
  std::printf("\n");
}

int main(int count, char** words) {
  try {
    if (count != 2) throw std::runtime_error("usage: run_bundle BUNDLE");
    const std::string folder = std::string(words[1]) + "/";
    const json manifest = json::parse(Read(folder + "bundle.json"));
    if (manifest["format"] > 1) throw std::runtime_error("the bundle is of a newer format than 1");
    const Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "run_bundle");
    bool agrees = true, ran = false;
    for (const auto& [name, entry] : manifest["entries"].items()) {
      if (!entry["programs"].contains("onnx")) continue;
      const std::string file = folder + entry["programs"]["onnx"]["file"].get<std::string>();
      Ort::Session session(environment, file.c_str(), Ort::SessionOptions());
      const Arrays samples = ReadArrays(folder + entry["samples"].get<std::string>());
      for (const auto& [output, array] : RunSamples(session, entry, samples)) {
        Print(name, output, array);
        const double found = Difference(array, samples.at("outputs/" + output)), allowed = entry["tolerance"];
        std::printf("%s %s: largest difference %.2g of %g allowed\n", name.c_str(), output.c_str(), found, allowed);
        agrees = agrees && found <= allowed;
        ran = true;
      }
    }
    if (!ran || !agrees) throw std::runtime_error(ran ? "an output differs from the samples" : "found no ONNX program");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_bundle: %s\n", error.what());
    return 1;
  }
}
