// @MODEL@ on iPhone, iPad and Mac, by Core ML. Drag @FILE@ and labels.txt into the app's target in Xcode, which
// compiles the package to @STEM@.mlmodelc. It takes an image; mean and std are in the package.
import CoreML
import CoreVideo
import Foundation

final class Classifier {
  static let height = @HEIGHT@, width = @WIDTH@

  private let model: MLModel
  private let labels: [String]

  init(bundle: Bundle = .main) throws {
    guard let file = bundle.url(forResource: "@STEM@", withExtension: "mlmodelc"),
      let names = bundle.url(forResource: "labels", withExtension: "txt")
    else { throw CocoaError(.fileNoSuchFile) }
    labels = try String(contentsOf: names, encoding: .utf8).components(separatedBy: "\n")
    model = try MLModel(contentsOf: file, configuration: MLModelConfiguration())
  }

  /// The class of an image of height x width pixels, 32BGRA or 32ARGB (OneComponent8 if it is gray); see
  /// preprocessing.txt.
  func classify(_ buffer: CVPixelBuffer) throws -> String {
    let image = MLFeatureValue(pixelBuffer: buffer)
    let answer = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["@INPUT@": image]))
    guard let output = answer.featureValue(for: "@OUTPUT@") else { throw CocoaError(.featureUnsupported) }
    if let logits = output.multiArrayValue {
      return labels[(0..<@CLASSES@).max { logits[$0].floatValue < logits[$1].floatValue }!]
    }
    let probabilities = output.dictionaryValue  // of a classifier, by the class
    return probabilities.max { $0.value.floatValue < $1.value.floatValue }!.key as! String
  }
}
