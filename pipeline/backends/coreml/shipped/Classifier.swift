// @MODEL@ on iPhone, iPad and Mac, by Core ML. Drag @FILE@ and labels.txt into the app's target in Xcode, which
// compiles the package to @STEM@.mlmodelc.
import CoreML
import Foundation

final class Classifier {
  static let batch = @BATCH@, channels = @CHANNELS@, height = @HEIGHT@, width = @WIDTH@
  static let mean: [Float] = [@MEAN@], std: [Float] = [@STD@]  // of @LETTERS@ in [0, 1]
  static let weights: [Float] = [@WEIGHTS@]  // of R, G, B in each channel

  private let model: MLModel
  private let labels: [String]

  init(bundle: Bundle = .main) throws {
    guard let file = bundle.url(forResource: "@STEM@", withExtension: "mlmodelc"),
      let names = bundle.url(forResource: "labels", withExtension: "txt")
    else { throw CocoaError(.fileNoSuchFile) }
    labels = try String(contentsOf: names, encoding: .utf8).components(separatedBy: "\n")
    model = try MLModel(contentsOf: file, configuration: MLModelConfiguration())
  }

  /// The class of one image: height x width pixels of R, G, B, 8 bits each; see preprocessing.txt.
  func classify(rgb: [UInt8]) throws -> String {
    let plane = Self.height * Self.width
    precondition(rgb.count == 3 * plane, "give \(Self.height) x \(Self.width) pixels of R, G, B")
    let shape = [Self.batch, Self.channels, Self.height, Self.width].map { NSNumber(value: $0) }
    let image = try MLMultiArray(shape: shape, dataType: .float32)  // channel by channel; the batch's first image
    for i in 0..<image.count { image[i] = 0 }
    for channel in 0..<Self.channels {
      for i in 0..<plane {
        let level = (0..<3).reduce(Float(0)) { $0 + Self.weights[3 * channel + $1] * Float(rgb[3 * i + $1]) }
        let value = (level / 255 - Self.mean[channel]) / Self.std[channel]
        image[channel * plane + i] = NSNumber(value: value)
      }
    }
    return try best(of: MLFeatureValue(multiArray: image))
  }

  private func best(of image: MLFeatureValue) throws -> String {
    let answer = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["@INPUT@": image]))
    guard let output = answer.featureValue(for: "@OUTPUT@") else { throw CocoaError(.featureUnsupported) }
    if let logits = output.multiArrayValue {
      return labels[(0..<@CLASSES@).max { logits[$0].floatValue < logits[$1].floatValue }!]
    }
    let probabilities = output.dictionaryValue  // of a classifier, by the class
    return probabilities.max { $0.value.floatValue < $1.value.floatValue }!.key as! String
  }
}
