#if !UNITY_5_3_OR_NEWER
using System;
using System.Text;

namespace PersonaChat.Tests
{
    // Runs the core's checks; the exit code is 0 where none failed.
    internal static class Program
    {
        private static int Main()
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            JsonTests.Run();
            SseTests.Run();
            LedgerTests.Run();
            ClientTests.Run();
            Console.WriteLine("{0} failed", Check.Failed);
            return Check.Failed == 0 ? 0 : 1;
        }
    }
}
#endif
