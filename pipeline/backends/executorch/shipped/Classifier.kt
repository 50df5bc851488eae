// @MODEL@ on Android, by ExecuTorch. Put @FILE@ and labels.txt into src/main/assets, and into build.gradle.kts:
//   implementation("org.pytorch:executorch-android:@EXECUTORCH@")    // the version that the file was made with
import android.content.Context
import android.graphics.Bitmap
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Classifier(context: Context) {
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val module = Module.load(fileOf(context).path)

    /** The class of a bitmap; see preprocessing.txt for how it becomes HEIGHT x WIDTH pixels. */
    fun classify(bitmap: Bitmap): String {
        require(bitmap.width == WIDTH && bitmap.height == HEIGHT) { "give a bitmap of $HEIGHT x $WIDTH pixels" }
        val pixels = IntArray(HEIGHT * WIDTH)
        bitmap.getPixels(pixels, 0, WIDTH, 0, 0, WIDTH, HEIGHT)
        val input = FloatArray(BATCH * CHANNELS * HEIGHT * WIDTH) // channel by channel; the first image of the batch
        for (channel in 0 until CHANNELS) {
            for (i in pixels.indices) {
                val rgb = (0 until 3).map { pixels[i] shr (16 - 8 * it) and 0xFF }
                val level = (0 until 3).sumOf { WEIGHTS[3 * channel + it] * rgb[it] }
                input[channel * HEIGHT * WIDTH + i] = ((level / 255.0 - MEAN[channel]) / STD[channel]).toFloat()
            }
        }
        val logits = logits(input)
        return labels[(0 until CLASSES).maxByOrNull { logits[it] }!!]
    }

    /** BATCH * CHANNELS * HEIGHT * WIDTH values in, BATCH * CLASSES out; golden/ has some to try. */
    fun logits(input: FloatArray): FloatArray {
        val shape = longArrayOf(BATCH.toLong(), CHANNELS.toLong(), HEIGHT.toLong(), WIDTH.toLong())
        return module.forward(EValue.from(Tensor.fromBlob(input, shape)))[0].toTensor().dataAsFloatArray
    }

    private companion object {
        const val BATCH = @BATCH@
        const val CHANNELS = @CHANNELS@
        const val HEIGHT = @HEIGHT@
        const val WIDTH = @WIDTH@
        const val CLASSES = @CLASSES@
        val MEAN = doubleArrayOf(@MEAN@) // of @LETTERS@ in [0, 1]
        val STD = doubleArrayOf(@STD@)
        val WEIGHTS = doubleArrayOf(@WEIGHTS@) // of R, G, B in each channel

        /** ExecuTorch reads a file, and an asset is none: a copy, in the app's own folder, by its digest. */
        fun fileOf(context: Context): File {
            val file = File(context.filesDir, "@DIGEST@-@FILE@")
            if (!file.exists()) {
                val fresh = File(context.filesDir, "${file.name}.new")
                context.assets.open("@FILE@").use { asset -> fresh.outputStream().use { asset.copyTo(it) } }
                fresh.renameTo(file)
            }
            return file
        }
    }
}
