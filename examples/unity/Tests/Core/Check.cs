#if !UNITY_5_3_OR_NEWER
using System;

namespace PersonaChat.Tests
{
    // Prints a line for each check and counts what fails.
    internal static class Check
    {
        public static int Failed { get; private set; }

        public static void That(bool holds, string what)
        {
            Console.WriteLine("{0} {1}", holds ? "ok   " : "FAIL ", what);
            if (!holds)
            {
                Failed++;
            }
        }

        public static void Equal<T>(T wanted, T got, string what)
        {
            bool same = Equals(wanted, got);
            That(same, same ? what : what + ": wanted <" + wanted + ">, got <" + got + ">");
        }

        // Returns the error, or null where there was none or another.
        public static T Throws<T>(Action act, string what)
            where T : Exception
        {
            try
            {
                act();
            }
            catch (T error)
            {
                That(true, what);
                return error;
            }
            catch (Exception error)
            {
                That(false, what + ": threw " + error);
                return null;
            }
            That(false, what + ": nothing was thrown");
            return null;
        }
    }
}
#endif
