#if !UNITY_5_3_OR_NEWER
using System.Globalization;
using System.Linq;
using System.Threading;

namespace PersonaChat.Tests
{
    internal static class JsonTests
    {
        public static void Run()
        {
            Texts();
            Numbers();
            Trees();
            BadInput();
            WrongKinds();
        }

        private static void Texts()
        {
            JsonValue read = JsonValue.Parse("\"\\\" \\\\ \\/ \\b\\f\\n\\r\\t \\u00e9 \\uD83D\\ude42 안녕 🙂\"");
            Check.Equal("\" \\ / \b\f\n\r\t é 🙂 안녕 🙂", read.AsText(), "every escape is read, pairs too");
            Check.Equal(read.AsText(), JsonValue.Parse(read.ToString()).AsText(), "a text comes back as written");
            Check.Equal(
                "\"\\u0000\\u001f\\\"\\\\\"", JsonValue.From("\0\u001f\"\\").ToString(), "what must be is escaped");
            Check.Equal("\"a\uFFFD🙂\uFFFD\"", JsonValue.From("a\ud83d🙂\ude42").ToString(), "a half pair is replaced");
            Check.Equal(JsonKind.Null, JsonValue.From((string)null).Kind, "a text that is null is null");
        }

        private static void Numbers()
        {
            CultureInfo before = Thread.CurrentThread.CurrentCulture;
            var german = (CultureInfo)CultureInfo.InvariantCulture.Clone();
            german.NumberFormat.NumberDecimalSeparator = ",";
            german.NumberFormat.NegativeSign = "~";
            Thread.CurrentThread.CurrentCulture = german;
            Check.Equal("-0.5", JsonValue.From(-0.5).ToString(), "a number is written alike in every culture");
            Check.Equal(-0.5, JsonValue.Parse("-0.5").AsDouble(), "and read alike");
            Check.Equal(-7L, JsonValue.Parse("-7").AsLong(), "whole ones too");
            Thread.CurrentThread.CurrentCulture = before;
            Check.Equal(7L, JsonValue.Parse("7.0").AsLong(), "7.0 is a whole number");
            Check.Equal(-2.5e-3, JsonValue.Parse("-2.5E-3").AsDouble(), "an exponent is read");
            Check.Equal(long.MaxValue, JsonValue.Parse("9223372036854775807").AsLong(), "64 bits are whole");
            Check.Equal(
                "0.10000000000000000001", JsonValue.Parse("0.10000000000000000001").ToString(), "no digit is lost");
            Check.Throws<JsonException>(() => JsonValue.Parse("0.5").AsLong(), "a half is no whole number");
            Check.Throws<JsonException>(() => JsonValue.Parse("1e300").AsLong(), "nor is what 64 bits cannot hold");
            Check.Throws<JsonException>(() => JsonValue.From(double.NaN), "NaN cannot be written");
        }

        private static void Trees()
        {
            JsonValue tree = JsonValue.Parse(" {\"a\" : [ 1 , {} , [] , null, true,false ] , \"\": \"b\"} \r\n\t");
            Check.Equal(6, tree["a"].Items.Count, "arrays and objects are read, spaces and all");
            Check.Equal("{\"a\":[1,{},[],null,true,false],\"\":\"b\"}", tree.ToString(), "and written");
            Check.That(tree.Find("none") == null, "a member that is missing is not found");
            Check.That(JsonValue.Parse("{\"a\": null}").Find("a") == null, "nor is null");
            string deep = Nested(JsonReader.MaxDepth);
            Check.Equal(deep, JsonValue.Parse(deep).ToString(), "64 levels are read");
            Check.Throws<JsonException>(() => JsonValue.Parse(Nested(65)), "65 levels are refused");
            Check.Throws<JsonException>(() => JsonValue.Parse(new string('[', 1000000)), "a million as well");
        }

        private static string Nested(int depth)
        {
            return new string('[', depth) + new string(']', depth);
        }

        private static void BadInput()
        {
            string[] bad =
            {
                null, "", " ", "nul", "nulll", "True", "NaN", "+1", "-", "01", "-01", "1.", ".5", "1e", "1e+", "0x1",
                "١", "1e999", "'a'", "\"", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\n\"", "\"\\ud83d\"",
                "\"\\ude42\"", "\"\\ud83dx\"", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "]", "{", "{\"a\"",
                "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{1:1}", "{\"a\":1 \"b\":2}", "{\"a\":1,\"a\":2}",
                "1 2", "[] x", "/* */ 1", "\uFEFF1", "[1}", "{\"a\":1]",
            };
            foreach (string json in bad)
            {
                Check.Throws<JsonException>(() => JsonValue.Parse(json), "refused: " + JsonValue.From(json));
            }
            var error = Check.Throws<JsonException>(() => JsonValue.Parse("[1, x]"), "a mistake has a place");
            Check.Equal(4, error.Position, "the place is that of the mistake");
            Check.Equal(EngineException.BadJson, error.Code, "and a code");
            string whole = Answers.Result;
            int read = Enumerable.Range(0, whole.Length).Count(length => Reads(whole.Substring(0, length)));
            Check.Equal(0, read, "an answer cut anywhere is refused");
        }

        private static bool Reads(string json)
        {
            try
            {
                JsonValue.Parse(json);
                return true;
            }
            catch (JsonException)
            {
                return false;
            }
        }

        private static void WrongKinds()
        {
            JsonValue tree = JsonValue.Parse("{\"a\": 1}");
            Check.Throws<JsonException>(() => tree["a"].AsText(), "a number is no text");
            Check.Throws<JsonException>(() => tree["a"].Find("b"), "a number has no members");
            Check.Throws<JsonException>(() => tree.AsBoolean(), "an object is neither true nor false");
            var error = Check.Throws<JsonException>(() => tree["b"].AsText(), "a missing member is an error");
            Check.That(error.Message.Contains("'b'"), "which names it");
        }
    }
}
#endif
